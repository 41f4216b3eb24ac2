"""What the effective configs of a grid say of number formats and of the quirks of the authors' code, in words."""

from .base import get
from .tables import OPTIMIZERS

# Keys of the config's group `quirks`, by docs/paper.md.
NAMED = {"previous_batch_gradient": "Q2, the gradient of the batch before is added",
         "shared_columns": "Q11, q, k, v and o share their columns"}
DETAILS = {"previous_batch_dropped_every": "previous_batch_gradient"}  # key -> the quirk of which it is a part


def places(configs: dict, key: str) -> list:
    """The groups of parameters for which `key` of an optimizer group is true in any of the configs."""
    found = []
    for config in configs.values():
        for role, value in get(config, "optimizer", {}).items():
            for group in value if isinstance(value, list) else [value]:
                if not isinstance(group, dict) or group.get(key) is not True:
                    continue
                if role == "matrices":
                    found.append(f"the matrices under {OPTIMIZERS[group['type']]}")
                elif isinstance(value, list):
                    found.append(f"'{group.get('pattern', '')}'")
                else:
                    found.append(f"the {role}")
    return list(dict.fromkeys(found))


def number_formats(configs: dict) -> str:
    """Of weights and optimizer states."""
    weights, moments = places(configs, "bf16_weights"), places(configs, "bf16_moments")
    if not weights and not moments:
        return "weights and optimizer states are fp32 (also AdamW's)"
    of_weights, of_moments = (f" (bf16: those of {', '.join(names)})" if names else "" for names in (weights, moments))
    return f"weights are fp32{of_weights}, optimizer states fp32{of_moments}"


def quirks(configs: dict) -> list:
    """Those that are on, in words: of some of the configs or of all."""
    found = []
    for config in configs.values():
        if get(config, "optimizer.matrices.sketch") == "columns_authors":
            found.append("Q1, the sketch columns_authors draws columns of a tall matrix from the first ones only")
        if get(config, "optimizer.vectors.lr") == 0:
            found.append("Q5, vectors (norms and biases) are not trained")
        group = get(config, "quirks", {})
        for key, value in group.items():
            if value and key not in DETAILS:
                details = [f"{detail} {group[detail]}" for detail, of in DETAILS.items() if of == key
                           and group.get(detail)]
                found.append(NAMED.get(key, f"{key} {value}") + "".join(f" ({detail})" for detail in details))
    found += [f"Q3, weights of {place} are kept in bf16 alone" for place in places(configs, "bf16_weights")]
    found += [f"Q18, moments of {place} are bf16" for place in places(configs, "bf16_moments")]
    return list(dict.fromkeys(found))
