"""What a query is searched against: the entries that each evaluation protocol lists, images or centroids.

`image` lists images; `centroid` and `centroid_all` list one mean feature per identity, and every distractor image
stands alone. Junk (pid -1) is never listed. Entries keep the gallery's order (an identity stands where its first image
stood), because ties are broken by it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

JUNK = -1  # pid of images that nobody should find or miss
UNKNOWN = -1  # camid of images without a camera: never equal to another
LISTED, EMPTIED = -1, -2  # see Gallery.own_of
ROWS_PER_SUM = 8192  # features summed in float64 at a time: 128 MiB at 2,048 dimensions


@dataclass
class Features:
    """One split's features and labels: torch tensors, or numpy arrays and lists, which are converted.

    embeddings (N, D) as the model gives them, not normalised; kept as float32. pids (N,) int64, -1 = junk.
    camids (N,) int64, -1 = unknown. distractors (N,) bool or None: images that match nobody, whatever their pid; with
    None every pid but -1 is an identity, 0 too. Labels go to the embeddings' device. ValueError on wrong shapes.
    """

    embeddings: Tensor
    pids: Tensor
    camids: Tensor
    distractors: Tensor | None = None

    def __post_init__(self) -> None:
        self.embeddings = torch.as_tensor(self.embeddings).detach().float()
        if self.embeddings.ndim != 2:
            raise ValueError(f"embeddings have shape {tuple(self.embeddings.shape)}; give (images, dimensions)")
        self.pids = self._labels("pids", self.pids)
        self.camids = self._labels("camids", self.camids)
        if self.distractors is not None:
            self.distractors = self._labels("distractors", self.distractors).bool()

    def _labels(self, name: str, values: Tensor) -> Tensor:
        labels = torch.as_tensor(values, device=self.embeddings.device)
        if labels.shape != (len(self),):
            raise ValueError(f"{name} have shape {tuple(labels.shape)}; {len(self)} embeddings need ({len(self)},)")
        if len(labels) and (labels.is_floating_point() or labels.is_complex()):  # an empty list arrives as float
            raise ValueError(f"{name} are {labels.dtype}; give integers")
        return labels.long()

    def __len__(self) -> int:
        return len(self.embeddings)

    def is_distractor(self) -> Tensor:
        """(N,) bool, all False where no mask was given."""
        return torch.zeros_like(self.pids, dtype=torch.bool) if self.distractors is None else self.distractors


@dataclass(frozen=True)
class Gallery:
    """The E entries of one protocol, and what a query sees instead of its own identity's entry.

    embeddings (E, D) float32, not normalised; pids, camids (E,), camid -1 where the camera rule does not apply;
    distractors (E,) bool; first (E,): the row of the given features that the entry is, or its first image.
    own (V, D): centroids without one camera; own_of (Q,): for each query its row of `own`, or LISTED where its
    identity's entry serves as it is, or EMPTIED where all images of its identity come from the query's camera.
    """

    embeddings: Tensor
    pids: Tensor
    camids: Tensor
    distractors: Tensor
    first: Tensor
    own: Tensor
    own_of: Tensor

    def __len__(self) -> int:
        return len(self.pids)


@dataclass(frozen=True)
class _Identities:
    """Float64 sums of each identity's features: pids (I,) ascending, sums (I, D), counts (I,), over `rows` (M,) of the
    gallery, which belong to the identities `member` (M,).

    Float64 because a centroid without a camera is a sum minus a sum: in float32 the difference would carry the rounding
    of the images taken away; in float64 it rounds to the same float32 as summing what is left, in any order.
    """

    pids: Tensor
    sums: Tensor
    counts: Tensor
    rows: Tensor
    member: Tensor


def build_gallery(query: Features, gallery: Features, protocol: str) -> Gallery:
    """List the gallery as `protocol` (a key of PROTOCOLS) wants it. ValueError on an unknown protocol."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol](query, gallery)


def _list_images(query: Features, gallery: Features) -> Gallery:
    """Every image but junk."""
    rows = (gallery.pids != JUNK).nonzero().squeeze(1)
    # An index copies the features; most galleries have no junk (or had it dropped), and they are the large thing here.
    embeddings = gallery.embeddings if len(rows) == len(gallery) else gallery.embeddings[rows]
    return Gallery(
        embeddings,
        gallery.pids[rows],
        gallery.camids[rows],
        gallery.is_distractor()[rows],
        first=rows,
        own=embeddings[:0],
        own_of=torch.full_like(query.pids, LISTED),
    )


def _list_centroids_all(query: Features, gallery: Features) -> Gallery:
    """The mean of all gallery images of an identity: no camera rule."""
    return _list_means(gallery, _sum_identities(gallery), gallery.embeddings[:0], torch.full_like(query.pids, LISTED))


def _list_centroids(query: Features, gallery: Features) -> Gallery:
    """The standard filter, then the mean: a query's own identity is averaged without the query's camera."""
    identities = _sum_identities(gallery)
    own, own_of = _means_without_camera(query, gallery, identities)
    return _list_means(gallery, identities, own, own_of)


PROTOCOLS = {"image": _list_images, "centroid": _list_centroids, "centroid_all": _list_centroids_all}


def _sum_identities(gallery: Features) -> _Identities:
    rows = ((gallery.pids != JUNK) & ~gallery.is_distractor()).nonzero().squeeze(1)
    pids, member, counts = gallery.pids[rows].unique(return_inverse=True, return_counts=True)
    return _Identities(pids, _sum_groups(gallery.embeddings, rows, member, len(pids)), counts, rows, member)


def _sum_groups(embeddings: Tensor, rows: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Float64 sums (num_groups, D) of embeddings[rows], where rows[i] belongs to group[i]."""
    sums = embeddings.new_zeros((num_groups, embeddings.shape[1]), dtype=torch.float64)
    for part, groups in zip(rows.split(ROWS_PER_SUM), group.split(ROWS_PER_SUM), strict=True):
        sums.index_add_(0, groups, embeddings[part].double())
    return sums


def _list_means(gallery: Features, identities: _Identities, own: Tensor, own_of: Tensor) -> Gallery:
    """One entry per identity and per distractor image, in the order of their first images in the gallery."""
    alone = ((gallery.pids != JUNK) & gallery.is_distractor()).nonzero().squeeze(1)
    first_of_identity = torch.full_like(identities.pids, len(gallery))
    first_of_identity.scatter_reduce_(0, identities.member, identities.rows, "amin")
    means = (identities.sums / identities.counts[:, None]).float()
    first, order = torch.cat([first_of_identity, alone]).sort()
    return Gallery(
        torch.cat([means, gallery.embeddings[alone]])[order],
        gallery.pids[first],
        torch.full_like(first, UNKNOWN),
        order >= len(identities.pids),
        first,
        own,
        own_of,
    )


def _means_without_camera(query: Features, gallery: Features, identities: _Identities) -> tuple[Tensor, Tensor]:
    """Gallery.own and Gallery.own_of: one mean per (identity, camera) that the queries ask for, never one per query."""
    cameras, query_camera = query.camids.unique(return_inverse=True)
    identity = find(query.pids, identities.pids)
    known = (identity >= 0) & (query.camids != UNKNOWN)
    pairs, pair_of_query = (identity * len(cameras) + query_camera)[known].unique(return_inverse=True)

    camera = find(gallery.camids[identities.rows], cameras)
    pair = find(identities.member * len(cameras) + camera, pairs)
    taken = (camera >= 0) & (pair >= 0)
    removed = torch.bincount(pair[taken], minlength=len(pairs))
    sums = _sum_groups(gallery.embeddings, identities.rows[taken], pair[taken], len(pairs))

    of = pairs // max(len(cameras), 1)
    left = identities.counts[of] - removed
    own = ((identities.sums[of] - sums) / left.clamp(min=1)[:, None]).float()
    row = torch.arange(len(pairs), device=pairs.device)
    row = row.masked_fill(left == 0, EMPTIED).masked_fill(removed == 0, LISTED)
    own_of = torch.full_like(query.pids, LISTED)
    own_of[known] = row[pair_of_query]
    return own, own_of


def find(values: Tensor, table: Tensor) -> Tensor:
    """Position of each of `values` in the ascending `table`, -1 where it is absent. Both int64."""
    if not len(table):
        return torch.full_like(values, -1)
    at = torch.searchsorted(table, values).clamp(max=len(table) - 1)
    return torch.where(table[at] == values, at, -1)
