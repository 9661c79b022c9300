"""The evaluation protocols in one table, and the gallery entries that each of them lists: images or centroids.

`image` lists images; `centroid` and `centroid_all` list one mean feature per identity, and each distractor image as an
entry of its own. Junk (pid -1) is never listed. Entries keep the gallery's order (an identity has the place of its
first image), because it breaks ties. `ctl_published` repeats two faults of the CTL authors' evaluator, to explain the
metrics that came from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reid.metrics.features import JUNK, UNKNOWN, Features

LISTED, EMPTIED = -1, -2  # see Gallery.own_of
ROWS_PER_SUM = 8192  # features summed in float64 at a time: 128 MiB at 2,048 dimensions


@dataclass(frozen=True)
class Gallery:
    """The E entries of one protocol, and what a query sees instead of its own identity's entry.

    rows (N, D) float32, not normalised: the entries, or all features of a split, of which the rows `listed` (E,) are
    entries (a copy may be too large). pids, camids (E,), camid -1 if the camera rule does not apply. distractors (E,)
    bool. first (E,): the row of the given features that the entry is, or its identity's first image.
    own (V, D): centroids without one camera. own_of (Q,): each query's row of `own`, or LISTED if its identity's entry
    is used unchanged, or EMPTIED if all images of its identity come from the query's camera.
    sole_of (Q,): if an identity has several entries, the only one that the query keeps, or -1 for all of them.
    """

    rows: Tensor
    pids: Tensor
    camids: Tensor
    distractors: Tensor
    first: Tensor
    own: Tensor
    own_of: Tensor
    sole_of: Tensor
    listed: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pids)

    @property
    def embeddings(self) -> Tensor:
        """(E, D) the entries' features; a copy if not all rows are entries."""
        return self.rows if self.listed is None else self.rows[self.listed]

    def removes(self, query: Tensor, camids: Tensor, entry: Tensor) -> Tensor:
        """Return (N,) bool, True if the query does not see the entry, for N pairs of a query and an entry of its pid.

        Args:
            query: (N,) rows of the queries.
            camids: (N,) the queries' cameras.
            entry: (N,) rows of the gallery.
        """
        same_camera = (camids != UNKNOWN) & (self.camids[entry] == camids)
        sole = self.sole_of[query]
        return same_camera | (self.own_of[query] == EMPTIED) | ((sole >= 0) & (entry != sole))


@dataclass(frozen=True)
class _Identities:
    """Sums of each identity's features: pids (I,) ascending, sums (I, D) float64, counts (I,) and first rows (I,), over
    the gallery's rows (M,), which belong to the identities `member` (M,).

    Float64 because a centroid without a camera is a difference of two sums: in float32 it would carry the rounding of
    the images taken away; in float64 it rounds to the same float32 as the sum of the other images, in any order.
    """

    pids: Tensor
    sums: Tensor
    counts: Tensor
    first: Tensor
    rows: Tensor
    member: Tensor


def build_gallery(query: Features, gallery: Features, protocol: str) -> Gallery:
    """List the gallery's entries under `protocol`, a key of PROTOCOLS. Raises ValueError if it is unknown."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol].list_entries(query, gallery)


def _list_images(query: Features, gallery: Features) -> Gallery:
    """List every image but junk."""
    rows = (gallery.pids != JUNK).nonzero().squeeze(1)
    return Gallery(
        gallery.embeddings,
        gallery.pids[rows],
        gallery.camids[rows],
        gallery.is_distractor()[rows],
        first=rows,
        own=gallery.embeddings[:0],
        own_of=torch.full_like(query.pids, LISTED),
        sole_of=torch.full_like(query.pids, -1),
        listed=None if len(rows) == len(gallery) else rows,
    )


def _list_centroids_all(query: Features, gallery: Features) -> Gallery:
    """List the mean of all gallery images of an identity, without a camera rule."""
    return _list_means(gallery, _sum_identities(gallery), gallery.embeddings[:0], torch.full_like(query.pids, LISTED))


def _list_centroids(query: Features, gallery: Features) -> Gallery:
    """Filter first, then average: the mean of a query's own identity leaves out the query's camera."""
    identities = _sum_identities(gallery)
    without = _leave_cameras_out(query, gallery, identities)
    return _list_means(gallery, identities, without.means, without.own_of(query))


def _list_published(query: Features, gallery: Features) -> Gallery:
    """List what the CTL authors' evaluator lists, with its faults: only to explain published metrics.

    For each camera that an identity's queries come from, this is the mean of the identity's images by other cameras; a
    query does not see means of its identity that include its camera. There are two faults. The cameras of gallery
    images are read at the wrong place (`_misread_cameras`), so images by the query's own camera stay in the mean.
    Identities without a query, distractors among them, are not listed. All means of other identities are negatives.
    """
    every_query = query if query.taken_from is None else query.taken_from
    identified = Features(
        every_query.embeddings, every_query.pids.masked_fill(every_query.is_distractor(), JUNK), every_query.camids
    )
    gallery = Features(gallery.embeddings, gallery.pids, _misread_cameras(every_query, gallery), gallery.distractors)
    identities = _sum_identities(gallery)
    without = _leave_cameras_out(identified, gallery, identities)
    variants = (without.use >= 0).nonzero().squeeze(1)
    # Cameras without an image of the identity leave nothing out; they share one mean.
    asked = find(identified.pids, identities.pids)
    complete = asked[(asked >= 0) & (without.own_of(identified) == LISTED)].unique()

    identity, order = torch.cat([without.identity[variants], complete]).sort(stable=True)
    means = (identities.sums[complete] / identities.counts[complete, None]).float()
    entry_of = torch.full_like(without.use, -1)
    entry_of[variants] = order.argsort()[: len(variants)]
    own_of = without.own_of(query)
    sole_of = torch.full_like(own_of, -1)
    sole_of[own_of >= 0] = entry_of[own_of[own_of >= 0]]
    return Gallery(
        torch.cat([without.means[variants], means])[order],
        identities.pids[identity],
        torch.full_like(identity, UNKNOWN),
        torch.zeros_like(identity, dtype=torch.bool),
        identities.first[identity],
        own=gallery.embeddings[:0],
        own_of=own_of.clamp(max=LISTED),
        sole_of=sole_of,
    )


def _misread_cameras(query: Features, gallery: Features) -> Tensor:
    """Return (N,) for the i-th gallery image the camera of the i-th image of queries and gallery, junk left out."""
    rows = (gallery.pids != JUNK).nonzero().squeeze(1)
    camids = torch.full_like(gallery.camids, UNKNOWN)
    camids[rows] = torch.cat([query.camids[query.pids != JUNK], gallery.camids[rows]])[: len(rows)]
    return camids


@dataclass(frozen=True)
class Protocol:
    """One evaluation protocol: what its gallery lists, and which published metrics its own compare with.

    `text` and `compares_with` are for readers of tables. `reranked_compares_with`: the same after re-ranking; empty if
    the protocol cannot be re-ranked.
    """

    name: str
    list_entries: Callable[[Features, Features], Gallery]
    text: str
    compares_with: str
    reranked_compares_with: str = ""

    @property
    def can_rerank(self) -> bool:
        return bool(self.reranked_compares_with)

    @property
    def reranked_name(self) -> str:
        """The name of the row with the re-ranked metrics."""
        return f"{self.name} + re-ranking"


_TABLE = (
    Protocol("image", _list_images, "every gallery image",
             "the image-level tables of BoT, AGW, fast-reid, TransReID and most of the field",
             "metrics that say “with re-ranking” and the same k1, k2 and λ, on images"),
    Protocol("centroid", _list_centroids, "one mean per identity, without the query's camera",
             "no published table; CTL's released weights with the camera look-up of its evaluator fixed"),
    Protocol("centroid_all", _list_centroids_all, "one mean per identity, all cameras",
             "the protocol that the CTL and MCTL papers describe, but not their tables", "no published table"),
    Protocol("ctl_published", _list_published,
             "as the CTL authors' code lists it, two faults included; it explains published metrics",
             "the centroid tables of the CTL and MCTL papers, and nothing else"),
)  # fmt: skip
PROTOCOLS = {protocol.name: protocol for protocol in _TABLE}


def _sum_identities(gallery: Features) -> _Identities:
    rows = ((gallery.pids != JUNK) & ~gallery.is_distractor()).nonzero().squeeze(1)
    pids, member, counts = gallery.pids[rows].unique(return_inverse=True, return_counts=True)
    first = torch.full_like(pids, len(gallery)).scatter_reduce_(0, member, rows, "amin")
    return _Identities(pids, _sum_groups(gallery.embeddings, rows, member, len(pids)), counts, first, rows, member)


def _sum_groups(embeddings: Tensor, rows: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Float64 sums (num_groups, D) of embeddings[rows], where rows[i] belongs to group[i]."""
    sums = embeddings.new_zeros((num_groups, embeddings.shape[1]), dtype=torch.float64)
    for part, groups in zip(rows.split(ROWS_PER_SUM), group.split(ROWS_PER_SUM), strict=True):
        sums.index_add_(0, groups, embeddings[part].double())
    return sums


def _list_means(gallery: Features, identities: _Identities, own: Tensor, own_of: Tensor) -> Gallery:
    """List one entry per identity and per distractor image, in the order of their first images in the gallery."""
    lone = ((gallery.pids != JUNK) & gallery.is_distractor()).nonzero().squeeze(1)
    first, order = torch.cat([identities.first, lone]).sort()
    # In parts, into one array: distractors may be as many as the gallery's images.
    entries = gallery.embeddings.new_empty((len(first), gallery.embeddings.shape[1]))
    means, others = order.argsort().split([len(identities.pids), len(lone)])
    for some in torch.arange(len(means), device=means.device).split(ROWS_PER_SUM):
        entries[means[some]] = (identities.sums[some] / identities.counts[some, None]).float()
    for places, rows in zip(others.split(ROWS_PER_SUM), lone.split(ROWS_PER_SUM), strict=True):
        entries[places] = gallery.embeddings[rows]
    return Gallery(
        entries,
        gallery.pids[first],
        torch.full_like(first, UNKNOWN),
        order >= len(identities.pids),
        first,
        own,
        own_of,
        sole_of=torch.full_like(own_of, -1),
    )


@dataclass(frozen=True)
class _WithoutCamera:
    """Means of identities without a camera: one per (identity, camera) of the queries, not one per query.

    pids (I,) and cameras (C,) ascending; pairs (V,) ascending, the identity's place * C + the camera's; identity (V,):
    that place; means (V, D); use (V,): its own row, LISTED if no image of the identity is by the camera, or EMPTIED if
    all are.
    """

    pids: Tensor
    cameras: Tensor
    pairs: Tensor
    identity: Tensor
    means: Tensor
    use: Tensor

    def own_of(self, query: Features) -> Tensor:
        """Return Gallery.own_of; LISTED also if the query's camera is unknown or the gallery lacks its identity."""
        pair = find(_pair(find(query.pids, self.pids), query.camids, self.cameras), self.pairs)
        own_of = torch.full_like(query.pids, LISTED)
        own_of[pair >= 0] = self.use[pair[pair >= 0]]
        return own_of


def _leave_cameras_out(query: Features, gallery: Features, identities: _Identities) -> _WithoutCamera:
    """Average the queries' identities without the queries' cameras."""
    cameras = query.camids[query.camids != UNKNOWN].unique()
    asked = _pair(find(query.pids, identities.pids), query.camids, cameras)
    pairs = asked[asked >= 0].unique()
    pair = find(_pair(identities.member, gallery.camids[identities.rows], cameras), pairs)
    taken = pair >= 0
    removed = torch.bincount(pair[taken], minlength=len(pairs))
    sums = _sum_groups(gallery.embeddings, identities.rows[taken], pair[taken], len(pairs))

    of = pairs // max(len(cameras), 1)
    left = identities.counts[of] - removed
    means = ((identities.sums[of] - sums) / left.clamp(min=1)[:, None]).float()
    row = torch.arange(len(pairs), device=pairs.device)
    use = row.masked_fill(left == 0, EMPTIED).masked_fill(removed == 0, LISTED)
    return _WithoutCamera(identities.pids, cameras, pairs, of, means, use)


def _pair(identity: Tensor, camids: Tensor, cameras: Tensor) -> Tensor:
    """Return (N,) identity * C + the camera's place, -1 if either is absent. identity (N,): places, -1 = absent."""
    camera = find(camids, cameras)
    return torch.where((identity >= 0) & (camera >= 0), identity * len(cameras) + camera, -1)


def find(values: Tensor, table: Tensor) -> Tensor:
    """Return the position of each of `values` in the ascending `table`, -1 if absent. Both int64."""
    if not len(table):
        return torch.full_like(values, -1)
    at = torch.searchsorted(table, values).clamp(max=len(table) - 1)
    return torch.where(table[at] == values, at, -1)
