"""A circuit's logits once more: one run of the whole model for every node, role and part.

In that run every node that fires earlier is set, whether or not there is an edge: to what the writer has been
computed to be where the edge is in the circuit, and to its ablated value everywhere else.
"""

import torch

from hooked_ssm.ops.state_edit import StateEdit


def naive_logits(model, index, edges, clean, corrupted, role_of, answer_pos, ablated):
    """edges: a set of (writer, role, part, reader, role, part), by number. ablated: a tensor by hook."""
    docs, length = clean.shape
    logits_hook = len(index.hooks) - 1
    embedding = {}

    def keep(x, hook):
        embedding[hook.name] = x.clone()

    with torch.no_grad():
        names = [index.hooks[number] for number in index.sources()]
        model.run_with_hooks(clean, fwd_hooks=[(name, keep) for name in names])
    memo = {}

    def node(number, role, part):
        """The hook's whole activation, as it is computed for this place of it."""
        if index.hooks[number] in embedding:
            return embedding[index.hooks[number]]
        if (number, role, part) not in memo:
            memo[number, role, part] = run(number, role, part)[0]
        return memo[number, role, part]

    def run(reader, role, part):
        hooks = []
        for writer, name in enumerate(index.hooks[:reader]):
            value = ablated[name].clone()
            for d in range(docs):
                for p in range(length):
                    i = int(role_of[d, p])
                    for s in range(index.parts[writer][1]):
                        if (writer, i, s, reader, role, part) in edges:
                            at = (d, p, s) if index.parts[writer][0] else (d, p)
                            value[at] = node(writer, i, s)[at]
            hooks.append((name, setting(value)))
        seen = []
        if reader < logits_hook:
            hooks.append((index.hooks[reader], lambda x, hook: seen.append(x.clone())))
        with torch.no_grad():
            logits = model.run_with_hooks(corrupted, fwd_hooks=hooks)
        return seen or [logits]

    logits = run(logits_hook, 0, 0)[0]
    return logits[torch.arange(docs), answer_pos]


def setting(value):
    def edit(x, hook):
        if "carried forward" in hook.meaning:
            return StateEdit(value, torch.ones((), dtype=torch.bool))
        return value

    return edit
