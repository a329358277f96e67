"""Where the rows of a fit are: all here, or shared among processes. NumPy only.

What a fit computes over all rows goes through this object: sums, maxima, decisions.
"""


class OneRank:
    """All rows are in this process, so that there is nothing to ask others for.

    :class:`~skbdistil._boosting._group.ProcessGroup` has the same methods for rows that
    are shared among processes. Each of its processes calls the same methods in the same
    order.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.

    size : int
        Number of processes.
    """

    rank = 0
    size = 1

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def sum(self, array):
        """Sum over the processes, for each entry.

        Parameters
        ----------
        array : ndarray of float64
            Over the rows that are here.

        Returns
        -------
        total : ndarray of float64
            Over all rows.
        """
        return array

    def max(self, array):
        """Maximum over the processes, for each entry; see :meth:`sum`."""
        return array

    def all(self, holds):
        """Whether something holds in all processes.

        Parameters
        ----------
        holds : bool

        Returns
        -------
        holds : bool
        """
        return holds

    def of_first(self, array):
        """What process 0 has.

        Parameters
        ----------
        array : ndarray
            Of the same shape and dtype in all processes.

        Returns
        -------
        array : ndarray
        """
        return array

    def object_of_first(self, thing):
        """What process 0 has.

        Parameters
        ----------
        thing : object
            That of the others is not looked at. It can be pickled.

        Returns
        -------
        thing : object
        """
        return thing

    def place(self, n_rows):
        """Where the rows that are here stand among all rows.

        Parameters
        ----------
        n_rows : int
            Number of rows here.

        Returns
        -------
        start : int
            Number of rows of the processes before this one.
        n_total : int
            Number of all rows.
        """
        return 0, n_rows

    def check_same(self, what, arrays):
        """Refuse to go on where processes differ.

        Parameters
        ----------
        what : str
            For the message.
        arrays : iterable of ndarray
            Must be the same, to the bit, in all processes.
        """


ONE_RANK = OneRank()
