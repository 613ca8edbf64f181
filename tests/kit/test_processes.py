"""Processes for lesson 18: each is one of its own, and all are a group."""

from course.kit.processes import Processes


def test_each_process_is_its_own_has_one_thread_and_a_place_in_the_group():
    def told(given):
        import os

        import torch
        import torch.distributed as dist

        mine = torch.tensor([given])
        dist.all_reduce(mine)
        return os.getpid(), torch.get_num_threads(), dist.get_rank(), mine.item()

    with Processes(2) as two:
        first, again = two.run(told, [(1,), (10,)]), two.run(told, [(2,), (3,)])
    assert [row[1:] for row in first] == [(1, 0, 11), (1, 1, 11)]
    assert [row[3] for row in again] == [5, 5]
    assert first[0][0] != first[1][0]
    assert [row[0] for row in again] == [row[0] for row in first]
