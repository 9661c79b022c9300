"""Raw datasets into WebDataset shards grouped by identity: readers, the build, its verification."""
