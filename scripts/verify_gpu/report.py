"""The markdown of the report, from what is known so far."""

MARKS = {
    "passed": "passed",
    "measured": "measured",
    "failed": "**failed**",
    "skipped": "skipped",
    "not finished": "*not finished*",
}


def cell(value) -> str:
    return str(value).replace("|", "\\|").replace("\n", "<br>")


def table(headers: list, rows: list) -> list:
    """Columns whose header ends in '>' are numbers."""
    lines = [
        "| " + " | ".join(header.rstrip(">") for header in headers) + " |",
        "|" + "|".join("---:" if header.endswith(">") else "---" for header in headers) + "|",
    ]
    return lines + ["| " + " | ".join(map(cell, row)) + " |" for row in rows] + [""]


def number(value, digits: int = 1, factor: float = 1.0) -> str:
    return "n/a" if value is None or value != value else f"{factor * value:,.{digits}f}"


def head(about: dict) -> list:
    device = about.get("device", {})
    lines = ["# Verification on a GPU", ""]
    if about.get("dry"):
        lines += ["**A dry run on the CPU with tiny models: it shows that the script works and nothing else.**", ""]
    lines += [f"- {about.get('date', '')}, commit `{about.get('commit', '')}`", f"- host: {about.get('host', '')}"]
    lines += [
        f"- device: {', '.join(f'{key} {value}' for key, value in device.items())}" if device else "- device: none"
    ]
    if "gemm_flops" in about:
        lines += [
            f"- limits found: largest product {about['gemm_flops'] * 1e-12:.1f} TFLOP/s, copy "
            f"{about['copy_bytes_per_s'] * 1e-9:.0f} GB/s (bytes read and written)"
        ]
    return lines + [""]


def steps(results: list) -> list:
    rows = [
        [result.phase, result.step, MARKS[result.status], f"{result.seconds:.1f}", result.detail] for result in results
    ]
    return table(["phase", "step", "result", "s>", ""], rows)


def losses(results: list) -> list:
    found = [result for result in results if "cpu_losses" in result.data and "losses" in result.data]
    if not found:
        return []
    headers, columns = ["step>", "CPU fp32>"], [found[0].data["cpu_losses"]]
    for result in found:
        headers.append(result.step.replace(" against the CPU", "") + ">")
        columns.append(result.data["losses"])
    rows = [
        [i + 1, *(number(column[i], 5) if i < len(column) else "" for column in columns)]
        for i in range(len(columns[0]))
    ]
    return ["## Losses", ""] + table(headers, rows)


def kernels(results: list) -> list:
    lines = []
    for result in results:
        if "cases" not in result.data:
            continue
        lines += [
            "## Ops",
            "",
            "`limit`: the larger of FLOPs at the largest product's rate and bytes at the copy's rate.",
            "",
        ]
        rows = []
        for case in result.data["cases"]:
            if "error" in case:
                rows.append([case["model"], case["op"], case["shape"], "", "", "", case["error"]])
                continue
            seconds = case["ms"] * 1e-3
            rows.append(
                [
                    case["model"],
                    case["op"],
                    case["shape"],
                    number(case["ms"], 4),
                    number(case["flops"] / seconds, 1, 1e-12),
                    number(case["bytes"] / seconds, 0, 1e-9),
                    number(case["share"], 0, 100),
                ]
            )
        lines += table(["model", "op", "shape", "ms>", "TFLOP/s>", "GB/s>", "% of limit>"], rows)
    return lines


def optimizers(results: list) -> list:
    rows = [row for result in results for row in result.data.get("rows", [])]
    if not rows:
        return []
    torch = {
        (result.data["width"], result.data["layers"]): result.data["ms"]
        for result in results
        if result.data.get("what") == "optimizer"
    }
    lines = [
        "## Optimizer steps over all matrices of a GPT-2",
        "",
        "`floor`: 22 bytes an element at the copy's rate. `torch`: how many times faster than torch's optimizer of that name.",
        "",
    ]
    shown = []
    for row in rows:
        name = "Muon" if row["method"] == "muon" else "AdamW" if row["method"].startswith("adamw") else None
        theirs = torch.get((row["width"], row["layers"]), {}).get(name)
        shown.append(
            [
                f"{row['layers']} x {row['width']}",
                row["rank"],
                row["method"],
                number(row["ms"], 3),
                number(row["times_muon"]),
                number(row["times_floor"], 2),
                number(theirs / row["ms"], 2) if theirs else "",
            ]
        )
    return lines + table(["model", "rank", "method", "ms>", "times Muon>", "times floor>", "torch>"], shown)


def training(results: list) -> list:
    rows = [result.data for result in results if "mfu_measured" in result.data]
    if not rows:
        return []
    torch = {result.data["model"]: result.data for result in results if result.data.get("what") == "step"}
    lines = [
        "## Training steps",
        "",
        "MFU: (6N + 6LCT) a token, over the datasheet's dense bf16 rate and over the largest product "
        "measured in the same process.",
        "",
    ]
    shown = []
    for row in rows:
        theirs = torch.get(row["config"]) if row["optimizer"] == "AdamW" else None
        shown.append(
            [
                row["config"],
                row["optimizer"],
                f"{row['micro_batch']} of {row['batch']} x {row['sequence_length']}",
                number(row["ms"]),
                number(row["tokens_per_s"], 0),
                number(row["mfu_datasheet"], 1, 100),
                number(row["mfu_measured"], 1, 100),
                number(row["peak_bytes"], 2, 2**-30),
                number(row["planned_bytes"], 2, 2**-30),
                number(row["tokens_per_s"] / theirs["tokens_per_s"], 2) if theirs else "",
            ]
        )
    lines += table(
        [
            "model",
            "matrices under",
            "micro-batch",
            "ms>",
            "tokens/s>",
            "MFU %>",
            "of product %>",
            "peak GiB>",
            "planned GiB>",
            "times torch>",
        ],
        shown,
    )
    for row in rows:
        ops = sorted(row["ops"], key=lambda op: -op["ms"])
        everything = sum(op["ms"] for op in ops)
        lines += [
            f"Where the time of {row['config']} with {row['optimizer']} goes (op by op, the host waiting after each):",
            "",
        ]
        lines += table(
            ["op", "calls>", "ms>", "%>", "TFLOP/s>", "GB/s>"],
            [
                [
                    op["op"],
                    op["calls"],
                    number(op["ms"], 2),
                    number(op["ms"] / everything, 1, 100),
                    number(op["gflop"] / op["ms"]),
                    number(op["gb"] / op["ms"] * 1e3, 0),
                ]
                for op in ops
                if op["ms"] > 0
            ],
        )
    return lines


def torch_steps(results: list) -> list:
    rows = [result.data for result in results if result.data.get("what") == "step"]
    if not rows:
        return []
    return ["## PyTorch", ""] + table(
        ["model", "micro-batch", "compiled", "ms>", "tokens/s>", "peak GiB>"],
        [
            [
                row["model"],
                f"{row['batch']} x {row['sequence_length']}",
                row["compile"],
                number(row["ms"]),
                number(row["tokens_per_s"], 0),
                number(row.get("peak_bytes"), 2, 2**-30),
            ]
            for row in rows
        ],
    )


def orthogonalization(results: list) -> list:
    lines = []
    for result in results:
        if "orthogonalization" in result.data:
            lines += ["## Orthogonalization of matrices with these singular values", ""]
            lines += [
                "Shares of the nuclear norm: of the exact polar factor in the subspace, and of what was computed.",
                "",
            ]
            rows = []
            for row in result.data["orthogonalization"]:
                output = row.get("captured_by_output")
                rows.append(
                    [
                        row["spectrum"],
                        row["method"],
                        row["rank"],
                        number(row["ms"], 3),
                        number(row["captured"], 4),
                        "-" if output is None else number(output, 4),
                    ]
                )
            lines += table(["spectrum", "method", "rank>", "ms>", "captured>", "by its output>"], rows)
    return lines


def render(about: dict, results: list) -> str:
    lines = head(about) + steps(results)
    for part in (training, optimizers, torch_steps, losses, kernels, orthogonalization):
        lines += part(results)
    return "\n".join(lines).rstrip() + "\n"
