"""The progressive ensemble: students, the connections between them, one pass.

Plain torch: nothing here knows scikit-learn's estimators or how a student is trained.
"""

import copy
from itertools import chain, zip_longest
from numbers import Integral

import torch
from sklearn.base import BaseEstimator
from torch import nn
from torch.nn import functional

from skbdistil._sklearn_compat import Interval, StrOptions
from skbdistil.students import Backbone, ConvNet1d, ConvNet2d, RecurrentNet

__all__ = [
    "Connection",
    "Dense",
    "Last",
    "Lateral",
    "ProgressiveEnsemble",
    "Recurrent",
    "StageState",
    "Wide",
    "Window",
]


class Connection(nn.Module):
    """Base class of connections that join the last features of the students.

    A connection turns the features ``h_t`` of student ``t``'s own backbone and the
    joined features ``h'_1, ..., h'_{t-1}`` of the earlier students into ``h'_t``,
    which the head of student ``t`` reads. The first student has none. Derive from
    this class to define your own, and pass the class as ``connection``. Its method
    ``forward(features, earlier)`` takes ``h_t`` of shape (n, n_features) and the list
    of features of the earlier students, and returns ``h'_t`` of shape (n, n_joined).

    Parameters
    ----------
    n_features : int
        Number of features of the backbone.

    earlier : list of int
        Number of features of each earlier student.

    Attributes
    ----------
    n_joined : int
        Number of features that the connection returns. The base class sets it to
        `n_features`.

    reads : {"all", "last"}, default="all"
        Whose features `earlier` holds: those of all earlier students, or of the last
        one only.

    passes_on : {"joined", "own"}, default="joined"
        What later students read of this one: ``h'_t``, or the features ``h_t`` of its
        own backbone.

    See Also
    --------
    Dense, Last, Wide : The connections of the package.
    Window : A connection that reads the last few students.
    Lateral, Recurrent : Composition block by block, and step by step.

    Examples
    --------
    >>> import torch
    >>> from skbdistil.ensemble import Connection
    >>> class Sum(Connection):
    ...     def forward(self, features, earlier):
    ...         return features + sum(earlier)
    >>> h = torch.ones(2, 4)
    >>> Sum(4, [4, 4])(h, [h, h])[0]
    tensor([3., 3., 3., 3.])
    """

    reads = "all"
    passes_on = "joined"

    def __init__(self, n_features, earlier):
        super().__init__()
        self.n_joined = n_features


class Dense(Connection):
    """``h'_t = relu(Linear([h_t, h'_1, ..., h'_{t-1}]))``.

    The linear map starts as the identity on ``h_t``.

    Parameters
    ----------
    n_features : int
        Number of features of the backbone.

    earlier : list of int
        Number of features of each earlier student.

    Examples
    --------
    >>> import torch
    >>> from skbdistil.ensemble import Dense
    >>> h = torch.ones(2, 4)
    >>> Dense(4, [4])(h, [h]).shape
    torch.Size([2, 4])
    """

    def __init__(self, n_features, earlier):
        super().__init__(n_features, earlier)
        self.linear = nn.Linear(n_features + sum(earlier), n_features)
        # Training starts from a student that has its own features as they are.
        with torch.no_grad():
            self.linear.weight[:, :n_features].zero_().fill_diagonal_(1)

    def forward(self, features, earlier):
        return torch.relu(self.linear(torch.cat([features, *earlier], dim=1)))


class Last(Dense):
    """Like :class:`Dense`, reading ``h'_{t-1}`` only: the cost per stage is constant.

    Parameters
    ----------
    n_features : int
        Number of features of the backbone.

    earlier : list of int
        Number of features of the last student.

    Examples
    --------
    >>> import torch
    >>> from skbdistil.ensemble import Last
    >>> h = torch.ones(2, 4)
    >>> Last(4, [4]).linear.in_features
    8
    """

    reads = "last"


class Wide(Connection):
    """``h'_t = [h_t, h_1, ..., h_{t-1}]``: the head reads the features of all students.

    The students are like one layer that grows wider, and a new head weighs the features
    of the earlier students anew. Each output costs a weight per feature, so it is for
    few outputs.

    Parameters
    ----------
    n_features : int
        Number of features of the backbone.

    earlier : list of int
        Number of features of each earlier student.

    Examples
    --------
    >>> import torch
    >>> from skbdistil.ensemble import Wide
    >>> h = torch.ones(2, 4)
    >>> Wide(4, [4])(h, [h]).shape
    torch.Size([2, 8])
    """

    passes_on = "own"

    def __init__(self, n_features, earlier):
        super().__init__(n_features, earlier)
        self.n_joined = n_features + sum(earlier)

    def forward(self, features, earlier):
        return torch.cat([features, *earlier], dim=1)


# Whose activations a student reads.
_EARLIER = [StrOptions({"all", "last"}), Interval(Integral, 1, None, closed="left")]


class Window(BaseEstimator):
    """A connection that reads the last few students only.

    With ``"dense"``, student ``t`` reads the features of all ``t - 1`` students before
    it, so that the cost of an ensemble grows with the square of its size. Within a
    window it grows in proportion, from the stage on that has the window filled.

    Parameters
    ----------
    earlier : int, "all" or "last"
        How many of the students before it a student reads at most; ``"last"`` is 1.

    connection : {"dense", "wide"} or :class:`Connection` subclass, default="dense"
        The connection, which reads all earlier students by itself.

    See Also
    --------
    Last : The window of one student.
    Lateral : Has a window of its own.

    Examples
    --------
    >>> import torch
    >>> from skbdistil.ensemble import ProgressiveEnsemble, Window
    >>> from skbdistil.students import MLP
    >>> ensemble = ProgressiveEnsemble((8,), n_outputs=3, connection=Window(2))
    >>> for _ in range(4):
    ...     ensemble.append(ensemble.new_student(MLP))
    >>> ensemble.read_by(3)
    [1, 2]
    """

    _parameter_constraints = {
        "earlier": _EARLIER,
        # Checked with a message of its own.
        "connection": "no_validation",
    }

    def __init__(self, earlier, *, connection="dense"):
        self.earlier = earlier
        self.connection = connection

    @property
    def _join(self):
        """Class of the connection, or None if there is no such."""
        join = self.connection
        if isinstance(join, str):
            join = _NAMED.get(join)
        is_join = isinstance(join, type) and issubclass(join, Connection)
        return join if is_join and join.reads == "all" else None


class Lateral(BaseEstimator):
    """Composition block by block.

    Block ``b`` of student ``t`` reads its own block ``b - 1`` and the block ``b - 1``
    maps of earlier students. The richest composition, and the dearest per stage; for
    backbones that expose at least two blocks (:class:`skbdistil.students.Backbone`).

    Parameters
    ----------
    earlier : int, "all" or "last", default="all"
        Whose maps a student reads: those of all earlier students, or of at most so many
        of the last ones; ``"last"`` is 1.

    shared_blocks : int, default=0
        The first blocks of student 1 that serve all students: a later student starts
        from the map of the last one of them.

    See Also
    --------
    Connection : Base class of connections that join the last features only.

    Examples
    --------
    >>> from skbdistil.ensemble import Lateral
    >>> Lateral(shared_blocks=1)
    Lateral(shared_blocks=1)
    """

    _parameter_constraints = {
        "earlier": _EARLIER,
        "shared_blocks": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(self, earlier="all", *, shared_blocks=0):
        self.earlier = earlier
        self.shared_blocks = shared_blocks


class Recurrent(BaseEstimator):
    """Composition step by step, for students that are recurrent.

    At step ``s``, each layer of student ``t`` reads, besides its own input, the hidden
    state of the same layer of student ``t - 1`` at step ``s - 1``; at the first step,
    zeros. Where student ``t - 1`` has no such layer, nothing is added. For
    :class:`skbdistil.students.RecurrentNet` and its subclasses.

    What a student computes at a step depends on earlier steps of the others only, so
    that all students can take a step at the same time. With the other connections a
    student waits for the last step of those before it.

    See Also
    --------
    Lateral : Composition block by block, without delay.

    References
    ----------
    .. [1] D. K. Dennis, A. Shetty, A. P. Sevekari, K. Koishida, V. Smith, "Progressive
       Ensemble Distillation: Building Ensembles for Efficient Inference", section 4,
       NeurIPS 2023, arXiv:2302.10093.

    Examples
    --------
    >>> import torch
    >>> from skbdistil.ensemble import ProgressiveEnsemble, Recurrent
    >>> from skbdistil.students import RecurrentNet
    >>> ensemble = ProgressiveEnsemble((5, 3), n_outputs=2, connection=Recurrent())
    >>> for _ in range(2):
    ...     ensemble.append(ensemble.new_student(RecurrentNet))
    >>> ensemble.students[1].backbone.blocks[0].rnn.input_size  # 3 channels, 16 states
    19
    """

    _parameter_constraints = {}


# Outputs up to which connection="auto" lets heads read the features of all students.
_FEW_OUTPUTS = 2

# What the attributes of a connection may be.
_ATTRIBUTES = {"reads": ("all", "last"), "passes_on": ("joined", "own")}

_NAMED = {
    None: None,
    "dense": Dense,
    "last": Last,
    "wide": Wide,
    "lateral": Lateral(),
    "recurrent": Recurrent(),
}


def _check_connection(connection, estimator_name, *, auto=False):
    """Connection as None, a :class:`Connection` class, or an object that says more.

    Parameters
    ----------
    connection : None, str, type, Window, Lateral or Recurrent
    estimator_name : str
        Name of the estimator, for messages.
    auto : bool
        Whether ``"auto"`` is allowed, and returned as it is.

    Returns
    -------
    connection : None, type, Window, Lateral, Recurrent or "auto"
    """
    if isinstance(connection, Window | Lateral):
        connection._validate_params()
        if isinstance(connection, Window) and connection._join is None:
            raise ValueError(
                "The 'connection' parameter of Window must be 'dense', 'wide' or a "
                "subclass of skbdistil.ensemble.Connection that reads all earlier "
                f"students. Got {connection.connection!r} instead."
            )
        return connection
    if isinstance(connection, Recurrent):
        return connection
    if isinstance(connection, type) and issubclass(connection, Connection):
        for name, allowed in _ATTRIBUTES.items():
            value = getattr(connection, name)
            if value not in allowed:
                raise ValueError(
                    f"The attribute {name!r} of {connection.__name__} must be "
                    f"{allowed[0]!r} or {allowed[1]!r}. Got {value!r} instead."
                )
        return connection
    if connection is None or isinstance(connection, str):
        if connection in _NAMED:
            # A copy, since a Lateral can be changed.
            return copy.copy(_NAMED[connection])
        if auto and connection == "auto":
            return connection
    first = "'auto', " if auto else ""
    raise ValueError(
        f"The 'connection' parameter of {estimator_name} must be {first}None, 'dense', "
        "'last', 'wide', 'lateral', 'recurrent', a Window(...), a Lateral(...) or a "
        f"subclass of skbdistil.ensemble.Connection. Got {connection!r} instead."
    )


def _first_read(connection, position):
    """Position of the first student whose features a student reads.

    Parameters
    ----------
    connection : type, Window, Lateral or Recurrent
    position : int
        Position of the student.

    Returns
    -------
    first : int
    """
    if isinstance(connection, Recurrent):
        earlier = 1
    elif isinstance(connection, type):
        earlier = connection.reads
    else:
        earlier = connection.earlier
    if earlier == "all":
        return 0
    return max(0, position - (1 if earlier == "last" else earlier))


def _auto_connection(ladder, input_shape, n_outputs, shared_blocks=1):
    """Connection that suits the backbones of a ladder.

    Parameters
    ----------
    ladder : list of callable
        Backbone factories.
    input_shape : tuple of int
    n_outputs : int
    shared_blocks : int, default=1

    Returns
    -------
    connection : type or Lateral
        Block by block after the shared ones, for convolutional backbones that have
        blocks left after them and fit each other. For all others :class:`Wide` where
        there are few outputs, else :class:`Dense`.
    """
    joined = Wide if n_outputs <= _FEW_OUTPUTS else Dense
    lateral = ProgressiveEnsemble(
        input_shape, 1, connection=Lateral(shared_blocks=shared_blocks)
    )
    for factory in ladder:
        backbone = _build_backbone(factory, input_shape)
        if not isinstance(backbone, ConvNet1d | ConvNet2d):
            return joined
        try:
            lateral.append(lateral.new_student(factory))
        except ValueError:
            return joined
    return lateral.connection


class _Student(nn.Module):
    """Backbone, connection of the last features, and head.

    ``forward(x, earlier)`` returns the scores of the head ``(n, n_outputs)`` and the
    activations for later students, a tuple of tensors. `earlier` holds one such tuple
    per earlier student, empty where the connection does not read it.
    """

    def __init__(self, backbone, join, head, *, exposes):
        super().__init__()
        self.backbone = backbone
        self.join = join
        self.head = head
        self.exposes = exposes
        self.passes_own = join is not None and join.passes_on == "own"

    def forward(self, x, earlier=()):
        return self.joined(self.backbone(x), earlier)

    def joined(self, own, earlier=()):
        """What `forward` returns, from the features of the backbone."""
        joined = own
        if self.join is not None:
            read = [activations[0] for activations in earlier if activations]
            joined = self.join(own, read)
        passed = own if self.passes_own else joined
        return self.head(joined), (passed,) if self.exposes else ()


class _LateralStudent(nn.Module):
    """A student composed block by block; `forward` as for :class:`_Student`.

    Parameters
    ----------
    backbone : Backbone
        Without the blocks below `first`.
    head : torch.nn.Linear
    first : int
        Position in the student of the first block of `backbone`.
    sources : list of tuple of int
        Positions of the earlier students whose maps are read, each with the position
        of the block whose map it exposes first.
    reads_shared : bool
        Whether block `first` reads the first map that student 1 exposes.
    exposes_from : int
        Position of the block whose map this student exposes first.
    """

    def __init__(self, backbone, head, *, first, sources, reads_shared, exposes_from):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.first = first
        self.sources = sources
        self.reads_shared = reads_shared
        self.exposes_from = exposes_from

    def forward(self, x, earlier=()):
        backbone = self.backbone
        maps = earlier[0][0] if self.reads_shared else backbone.prepare(x)
        activations = []
        for position, block in enumerate(backbone.blocks, start=self.first):
            if position > self.first:
                read = [
                    earlier[student][position - 1 - offset]
                    for student, offset in self.sources
                    if position - 1 - offset < len(earlier[student])
                ]
                maps = torch.cat([maps, *read], dim=backbone.channel_dim)
            maps = block(maps)
            if position >= self.exposes_from:
                activations.append(maps)
        # No later block reads the map of the last one.
        return self.head(backbone.pool(maps)), tuple(activations[:-1])


class _RecurrentStudent(nn.Module):
    """A student composed step by step; `forward` as for :class:`_Student`.

    Parameters
    ----------
    backbone : RecurrentNet
        Whose layers have inputs for the states that they read.
    head : torch.nn.Linear
    """

    def __init__(self, backbone, head):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x, earlier=()):
        backbone = self.backbone
        read = earlier[-1][: len(backbone.blocks)] if earlier else ()
        maps = backbone.prepare(x)
        activations = []
        for block, states in zip_longest(backbone.blocks, read):
            if states is not None:
                # A step late, behind zeros at the first one.
                late = functional.pad(states[:, :-1], (0, 0, 1, 0))
                maps = torch.cat([maps, late], dim=backbone.channel_dim)
            maps = block(maps)
            activations.append(maps)
        return self.head(backbone.pool(maps)), tuple(activations)


class ProgressiveEnsemble(nn.Module):
    """Students whose running mean approaches the teacher.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of one row.

    n_outputs : int
        Number of scores L.

    connection : {"dense", "last", "wide", "lateral", "recurrent"}, None, \
            :class:`Connection` subclass, :class:`Window`, :class:`Lateral` or \
            :class:`Recurrent`, default="dense"
        How a student uses what earlier students computed.

    input_mean, input_scale : torch.Tensor or None, default=None
        Subtracted from and divided out of the input; they broadcast against a row.
        None leaves the input as it is.

    integer_input : bool, default=False
        Whether students take rows of int64, such as the indices of an embedding. Only
        without `input_mean` and `input_scale`.

    dtype : torch.dtype, default=torch.float32
        Type of the weights, as long as there are neither students nor scaling.

    output_mean, output_scale : torch.Tensor of shape (n_outputs,) or None, default=None
        The running mean is multiplied by `output_scale` and shifted by `output_mean`:
        the units of a regression target. None leaves it as it is.

    first_stages : ndarray of int of shape (n_outputs,), default=None
        Stage from which each output has students, from 1 on; before it, its running
        mean is 0. None: the first one. Each output then has a `carry` of its own.

    Attributes
    ----------
    students : torch.nn.ModuleList
        One module per student; see Notes.

    Notes
    -----
    A student is called with ``(x, earlier)``: the scaled input and one tuple of
    activations per earlier student. It returns the scores of its head and a tuple of
    the activations that later students may read. Its buffer `carry` is the factor of
    the running mean: ``F_t = carry_t * F_{t-1} + head_t``.

    Students are frozen when they are appended: they stay in evaluation mode whatever
    the mode of the ensemble. :meth:`unfreeze` lets all of them be trained together, but
    for parameters that their backbone has frozen.

    References
    ----------
    .. [1] D. K. Dennis, A. Shetty, A. P. Sevekari, K. Koishida, V. Smith, "Progressive
       Ensemble Distillation: Building Ensembles for Efficient Inference", section 4,
       NeurIPS 2023, arXiv:2302.10093.

    Examples
    --------
    >>> import torch
    >>> from skbdistil.ensemble import ProgressiveEnsemble
    >>> from skbdistil.students import MLP
    >>> ensemble = ProgressiveEnsemble((8,), n_outputs=3)
    >>> for _ in range(2):
    ...     ensemble.append(ensemble.new_student(MLP))
    >>> [mean.shape for mean in ensemble.stages(torch.zeros(5, 8))]
    [torch.Size([5, 3]), torch.Size([5, 3])]
    """

    # What `skbdistil._perceptrons` has found; a copy of the ensemble has None.
    products = None

    def __init__(
        self,
        input_shape,
        n_outputs,
        *,
        connection="dense",
        input_mean=None,
        input_scale=None,
        integer_input=False,
        dtype=torch.float32,
        output_mean=None,
        output_scale=None,
        first_stages=None,
    ):
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.n_outputs = n_outputs
        self.connection = _check_connection(connection, type(self).__name__)
        self.integer_input = integer_input
        self.first_stages = first_stages
        self._empty = torch.zeros((), dtype=dtype)
        # Kept as x * factor + offset, which is one pass over the input.
        factor = offset = None
        if input_scale is not None:
            factor = 1 / input_scale
            offset = -input_mean * factor
        self.register_buffer("input_factor", factor)
        self.register_buffer("input_offset", offset)
        self.register_buffer("output_mean", output_mean)
        self.register_buffer("output_scale", output_scale)
        self.students = nn.ModuleList().eval()
        self.frozen = True

    def __len__(self):
        return len(self.students)

    def train(self, mode=True):
        """Set the mode; frozen students stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.students.eval()
        return self

    def freeze(self):
        """Stop all students from being trained."""
        self.frozen = True
        self.students.requires_grad_(False)
        return self.train(self.training)

    def unfreeze(self):
        """Let all students be trained together, but for what their user has frozen."""
        self.frozen = False
        for student in self.students:
            for name, parameter in student.named_parameters():
                parameter.requires_grad_(name not in student.never_trained)
        return self.train(self.training)

    def append(self, student):
        """Add a student at the end and freeze it.

        Parameters
        ----------
        student : torch.nn.Module
            As :meth:`new_student` gives it.
        """
        self.students.append(student)
        if not self.frozen:
            self.freeze()
        # The others are frozen: to go through all of them would take quadratic time.
        student.requires_grad_(False).eval()

    def new_student(self, factory, *, n_features=None):
        """Build the next student, with fresh weights, without adding it.

        Parameters
        ----------
        factory : type or callable
            Backbone class or factory, called with the shape of a row.

        n_features : int or None, default=None
            Number of features of the backbone. None runs the student on zeros, to
            find it and to see that it fits the earlier students. A number is for
            students that were built before, such as saved ones: nothing is run.

        Returns
        -------
        student : torch.nn.Module
            Its attributes are `factory`, `n_features` of its backbone, `carry`, which
            is 1 before it is trained, and `never_trained`, the names of the parameters
            that the backbone has frozen.

        Raises
        ------
        ValueError
            If the backbone does not map ``(n, *input_shape)`` to ``(n, d)``, or cannot
            be connected with the earlier students.
        """
        if isinstance(self.connection, Lateral):
            student = self._new_lateral_student(factory)
        elif isinstance(self.connection, Recurrent):
            student = self._new_recurrent_student(factory)
        else:
            student = self._new_plain_student(factory, n_features)
        self._check_padding(student.backbone)
        student.factory = factory
        of_outputs = () if self.first_stages is None else (self.n_outputs,)
        student.register_buffer("carry", torch.ones(of_outputs))
        student.never_trained = {
            name
            for name, parameter in student.named_parameters()
            if not parameter.requires_grad
        }
        student.to(self.like())
        if n_features is None:
            self._check_run(student)
        return student

    def _check_padding(self, backbone):
        """Refuse padding that cannot be told from other numbers once it is scaled."""
        if (
            self.input_factor is None
            or getattr(backbone, "padding_value", None) is None
        ):
            return
        raise ValueError(
            f"{_describe(backbone)} finds padding by padding_value="
            f"{backbone.padding_value!r}, which scaling changes. Pass "
            "input_scaling=None, and scale rows before they are filled up."
        )

    def _new_plain_student(self, factory, n_features):
        backbone = _build_backbone(factory, self.input_shape)
        run = n_features is None
        if run:
            # Fresh weights have torch's default dtype.
            dtype = torch.int64 if self.integer_input else None
            example = torch.zeros((2, *self.input_shape), dtype=dtype)
            n_features = _feature_size(backbone, example)
        connection = self.connection
        if isinstance(connection, Window):
            connection = connection._join
        join = None
        if connection is not None and len(self):
            earlier = [
                self.students[position].n_passed for position in self.read_by(len(self))
            ]
            join = connection(n_features, earlier)
            if run:
                _check_join(join, n_features, earlier)
        n_joined = n_features if join is None else join.n_joined
        student = _Student(
            backbone,
            join,
            nn.Linear(n_joined, self.n_outputs),
            exposes=connection is not None,
        )
        student.n_features = n_features
        student.n_passed = n_features if student.passes_own else n_joined
        return student

    def _new_lateral_student(self, factory):
        shared = self.connection.shared_blocks
        backbone = _build_backbone(factory, self.input_shape)
        if not isinstance(backbone, Backbone) or len(backbone.blocks) < shared + 2:
            raise ValueError(
                "Lateral connections need a backbone that derives from "
                "skbdistil.students.Backbone and has at least two blocks of its own, "
                f"that is shared_blocks + 2 = {shared + 2} in all. "
                f"{_describe(backbone)} does not; use connection='dense', or more "
                "layers."
            )
        sources = []
        extra = [0] * len(backbone.blocks)
        if len(self):
            students = list(enumerate(self.students))
            students = students[_first_read(self.connection, len(self)) :]
            for position in range(shared + 1, len(backbone.blocks)):
                for _, student in students:
                    block = position - 1 - student.first
                    if block < len(student.backbone.blocks) - 1:
                        extra[position] += student.backbone.widths[position - 1]
            if shared:
                ours, theirs = backbone.widths, self.students[0].backbone.widths
                extra[shared] = theirs[shared - 1] - ours[shared - 1]
            sources = [(index, student.exposes_from) for index, student in students]
        backbone = _build_with_extra(factory, self.input_shape, extra, backbone)
        first = shared if len(self) else 0
        backbone.blocks = backbone.blocks[first:]
        student = _LateralStudent(
            backbone,
            nn.Linear(backbone.widths[-1], self.n_outputs),
            first=first,
            sources=sources,
            reads_shared=bool(shared and len(self)),
            exposes_from=shared if len(self) else max(shared - 1, 0),
        )
        student.n_features = backbone.widths[-1]
        return student

    def _new_recurrent_student(self, factory):
        backbone = _build_backbone(factory, self.input_shape)
        if not isinstance(backbone, RecurrentNet):
            raise ValueError(
                "Recurrent connections need students that derive from "
                f"skbdistil.students.RecurrentNet. {_describe(backbone)} does not; use "
                "connection='dense'."
            )
        if backbone.padding_value is not None:
            raise ValueError(
                "Recurrent connections read the states of all steps, and know of no "
                f"padding. {_describe(backbone)} has padding_value="
                f"{backbone.padding_value!r}; use connection='dense'."
            )
        if len(self):
            n_layers = len(backbone.widths)
            read = self.students[-1].backbone.widths[:n_layers]
            extra = [*read, *[0] * (n_layers - len(read))]
            backbone = _build_with_extra(factory, self.input_shape, extra, backbone)
        n_features = backbone.widths[-1]
        student = _RecurrentStudent(backbone, nn.Linear(n_features, self.n_outputs))
        student.n_features = n_features
        return student

    @torch.no_grad()
    def _check_run(self, student):
        """Run a student once behind the earlier ones, on zeros."""
        state = self.start(self.example())
        for _ in self.students:
            state.advance()
        shared = [state.x, *(part for parts in state.earlier for part in parts)]
        versions = [tensor._version for tensor in shared]
        student.eval()
        try:
            student(state.x, state.earlier)
        except RuntimeError as error:
            what = f"{_describe(student.backbone)} and its connection"
            if not len(self):
                raise ValueError(
                    f"{_describe(student.backbone)} cannot be run on rows of shape "
                    f"{self.input_shape} and type {self.input_dtype}: {error}"
                ) from error
            if isinstance(self.connection, Lateral):
                what = (
                    "Lateral connections need blocks whose maps have the same size in "
                    f"every student. The blocks of {_describe(student.backbone)}"
                )
            raise ValueError(
                f"{what} do not fit those of the earlier students: {error}"
            ) from error
        student.train()
        if versions != [tensor._version for tensor in shared]:
            raise ValueError(
                f"{_describe(student.backbone)} or its connection writes to its input, "
                "which all students share. Let it compute with a copy, such as x = x * "
                "0.1 in place of x *= 0.1."
            )

    def read_by(self, position):
        """Positions of the earlier students whose activations a student reads.

        Parameters
        ----------
        position : int
            Position of the student, from 0 on; it need not be there yet.

        Returns
        -------
        positions : list of int
        """
        connection = self.connection
        if connection is None or position == 0:
            return []
        read = list(range(_first_read(connection, position), position))
        shared = isinstance(connection, Lateral) and connection.shared_blocks
        return [0, *read] if shared and read[0] > 0 else read

    def like(self):
        """Return a tensor of the dtype and on the device of the ensemble.

        Returns
        -------
        tensor : torch.Tensor
            Some parameter or buffer; not to be written to.
        """
        # Those of its own first: walking through the modules takes time.
        for tensor in self._buffers.values():
            if tensor is not None and tensor.is_floating_point():
                return tensor
        tensors = chain(self.buffers(), self.parameters())
        return next((t for t in tensors if t.is_floating_point()), self._empty)

    @property
    def dtype(self):
        """Type of the weights."""
        return self.like().dtype

    @property
    def device(self):
        """Where the weights are."""
        return self.like().device

    @property
    def input_dtype(self):
        """Type of the rows that the ensemble takes."""
        return torch.int64 if self.integer_input else self.dtype

    def example(self):
        """Two rows of zeros, of the type and on the device that the ensemble takes.

        Returns
        -------
        x : torch.Tensor of shape (2, ...)
        """
        shape = (2, *self.input_shape)
        return torch.zeros(shape, dtype=self.input_dtype, device=self.device)

    def scale(self, x):
        """Input as the students see it: centred and scaled.

        Parameters
        ----------
        x : torch.Tensor of shape (n, ...)

        Returns
        -------
        x : torch.Tensor of the same shape
        """
        if self.input_factor is None:
            return x
        return torch.addcmul(self.input_offset, x, self.input_factor)

    def start(self, x):
        """Begin a pass over the students.

        Parameters
        ----------
        x : torch.Tensor of shape (n, ...)

        Returns
        -------
        state : StageState
        """
        return StageState(self, x)

    def stages(self, x):
        """Yield the running means ``F_1, ..., F_T`` in one pass.

        Parameters
        ----------
        x : torch.Tensor of shape (n, ...)

        Yields
        ------
        mean : torch.Tensor of shape (n, n_outputs)
        """
        state = self.start(x)
        for _ in self.students:
            yield state.step()

    def forward(self, x):
        """Running mean of all students.

        Parameters
        ----------
        x : torch.Tensor of shape (n, ...)

        Returns
        -------
        mean : torch.Tensor of shape (n, n_outputs)
        """
        state = self.start(x)
        for _ in self.students:
            state.advance()
        return state.output_mean()

    def truncated(self, n_stages):
        """Ensemble of the first students, which are shared with this one.

        Parameters
        ----------
        n_stages : int

        Returns
        -------
        ensemble : ProgressiveEnsemble
        """
        other = ProgressiveEnsemble(
            self.input_shape,
            self.n_outputs,
            connection=self.connection,
            integer_input=self.integer_input,
            first_stages=self.first_stages,
        )
        for name, buffer in self.named_buffers(recurse=False):
            setattr(other, name, buffer)
        other.students = self.students[:n_stages]
        return other.eval()


class StageState:
    """What a pass over the students has computed so far.

    Made by :meth:`ProgressiveEnsemble.start`.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
    x : torch.Tensor of shape (n, ...)

    Attributes
    ----------
    n_stages : int
        Number of students run.

    mean : torch.Tensor of shape (n, n_outputs) or None
        Their running mean in the units of the game: logits, or standardised targets.
        None before the first student.

    Examples
    --------
    >>> import torch
    >>> from skbdistil.ensemble import ProgressiveEnsemble
    >>> from skbdistil.students import MLP
    >>> ensemble = ProgressiveEnsemble((8,), n_outputs=3)
    >>> for _ in range(2):
    ...     ensemble.append(ensemble.new_student(MLP))
    >>> state = ensemble.start(torch.zeros(5, 8))
    >>> state.step().shape
    torch.Size([5, 3])
    >>> state.select(torch.tensor([True, False, False, True, False]))
    >>> state.step().shape
    torch.Size([2, 3])
    """

    def __init__(self, ensemble, x):
        self.ensemble = ensemble
        # A list, since indexing a ModuleList takes as long as a small layer.
        self._students = list(ensemble.students)
        self.x = ensemble.scale(x)
        self.earlier = []
        self._read = []
        self.mean = None
        self.n_stages = 0

    def advance(self):
        """Run the next student."""
        student = self._students[self.n_stages]
        scores, activations = self._run(student)
        if self.mean is not None:
            scores = torch.addcmul(scores, self.mean, student.carry)
        self.mean = scores
        self.earlier.append(activations)
        self.n_stages += 1
        # What the last student has read, and no later one will, is freed.
        read = self.ensemble.read_by(self.n_stages)
        for position in set(self._read).difference(read):
            self.earlier[position] = ()
        self._read = read

    def _run(self, student):
        """Scores of the head of the next student, and its activations."""
        return student(self.x, self.earlier)

    def output_mean(self):
        """Running mean of the students run so far, in the units of the output.

        Returns
        -------
        mean : torch.Tensor of shape (n, n_outputs)
            Logits, or targets.
        """
        if self.ensemble.output_scale is None:
            return self.mean
        return torch.addcmul(
            self.ensemble.output_mean, self.mean, self.ensemble.output_scale
        )

    def step(self):
        """Run the next student and return the running mean.

        Returns
        -------
        mean : torch.Tensor of shape (n, n_outputs)
        """
        self.advance()
        return self.output_mean()

    def select(self, rows):
        """Drop all other rows: they are not computed any further.

        Parameters
        ----------
        rows : torch.Tensor
            Boolean mask or indices of the rows that stay.
        """
        self.x = self.x[rows]
        self.earlier = [
            tuple(tensor[rows] for tensor in activations)
            for activations in self.earlier
        ]
        if self.mean is not None:
            self.mean = self.mean[rows]


def _describe(backbone):
    return f"The backbone {type(backbone).__name__}"


def _build_backbone(factory, input_shape):
    try:
        backbone = factory(input_shape)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"The 'student' factory {factory!r} cannot be called with the shape of a "
            f"row, {input_shape}: {error}"
        ) from error
    if not isinstance(backbone, nn.Module):
        raise ValueError(
            "A student must be a torch.nn.Module. The 'student' factory "
            f"{factory!r} returned {type(backbone).__name__}."
        )
    return backbone


def _build_with_extra(factory, input_shape, extra, backbone):
    """Build a backbone again, whose blocks also read maps of earlier students."""
    try:
        return factory(input_shape, extra=tuple(extra))
    except TypeError as error:
        raise ValueError(
            "Lateral and recurrent connections need a backbone that takes the keyword "
            "'extra', the channels that each block reads from earlier students. "
            f"{_describe(backbone)} does not: {error}"
        ) from error


def _check_join(join, n_features, earlier):
    """Run a connection once, on zeros."""
    joined = join(torch.zeros(2, n_features), [torch.zeros(2, d) for d in earlier])
    if tuple(joined.shape) != (2, join.n_joined):
        raise ValueError(
            f"The connection {type(join).__name__} must return features of shape (n, "
            f"n_joined), that is (n, {join.n_joined}), for a backbone of {n_features} "
            f"features. It returned shape {tuple(joined.shape)} for n = 2 rows."
        )


def _feature_size(backbone, example):
    """Number of features d, from one run on two rows."""
    was_training = backbone.training
    input_shape = tuple(example.shape[1:])
    try:
        with torch.no_grad():
            features = backbone.eval()(example)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{_describe(backbone)} cannot be run on rows of shape {input_shape} and "
            f"type {example.dtype}: {error}"
        ) from error
    backbone.train(was_training)
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) != 2 or shape[0] != 2:
        got = f"shape {shape}" if shape else type(features).__name__
        raise ValueError(
            "A student must map (n, *input_shape) to features of shape (n, d). "
            f"{_describe(backbone)} returned {got} for n = 2 rows of shape "
            f"{input_shape}."
        )
    return shape[1]
