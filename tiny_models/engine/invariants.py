"""What is true of an engine between any two steps."""

from collections import Counter


def broken(engine) -> list[str]:
    """The invariants that an engine does not hold now, each as a sentence."""
    allocator, scheduler = engine.allocator, engine.scheduler
    found = []
    tables = Counter(block for one in scheduler.running for block in one.blocks)
    known = Counter(engine.prefix_cache.blocks)
    for block in range(allocator.number):
        holders, counted = tables[block] + known[block], allocator.references(block)
        if holders != counted:
            found.append(
                f"block {block} is in {tables[block]} tables and {known[block]} times "
                f"in the prefix cache, but has {counted} references"
            )
    free, cached, used = allocator.free, engine.prefix_cache.cached, len(tables)
    if free + cached + used != allocator.number:
        found.append(
            f"{free} free + {cached} cached + {used} used blocks are not all "
            f"{allocator.number}"
        )
    for request in scheduler.running:
        name = f"answer {request.choice} of request {request.id}"
        if not 0 <= request.computed < len(request.ids):
            found.append(f"{name}: {request.computed} of {len(request.ids)} are done")
        if allocator.needed(request.computed) > len(request.blocks):
            found.append(f"{name}: not all that is computed has a place")
        if len(set(request.blocks)) < len(request.blocks):
            found.append(f"{name} has a block twice: {request.blocks}")
    found += [
        f"request {request.id} waits and holds blocks"
        for request in scheduler.waiting
        if request.blocks
    ]
    if len(scheduler.running) > scheduler.max_batch:
        found.append(f"{len(scheduler.running)} run at once")
    if engine.idle and (scheduler.running or scheduler.waiting or used):
        found.append(f"idle, but {used} blocks are in use")
    return found
