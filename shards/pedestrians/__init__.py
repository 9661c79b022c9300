"""How a pedestrian is drawn: figure and clothes, place and light, and the camera that takes the picture."""
