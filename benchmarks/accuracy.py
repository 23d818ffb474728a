"""Top-1 and top-5 of a network on labelled images: ONNX Runtime fp32 beside the emulated FPGA, on the same images.

    FPGASIM_DATA=/path/to/data python benchmarks/accuracy.py --images 200 --formats msfp16,bw_1s5e5m

$FPGASIM_DATA holds `resnet50_v1_f16weights.onnx` (input RGB minus the Caffe means), `imagenet-samples-1000.csv`
(file,label,…) and the folder of its 224×224 images. Prints the share of multiply-accumulates on the FPGA too.
"""

import argparse
import csv
import dataclasses
import os
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

import fpgasim as fs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50_v1_f16weights.onnx")
    parser.add_argument("--set", default="imagenet-samples-1000")
    parser.add_argument("--preprocess", default="resnet50_v1", help="zoo network whose pixel scaling the model wants")
    parser.add_argument("--formats", default="msfp16,bw_1s5e5m")
    parser.add_argument("--device", default="bw_a10")
    parser.add_argument("--images", type=int, default=1000)
    arguments = parser.parse_args()
    data = Path(os.environ["FPGASIM_DATA"])
    with (data / f"{arguments.set}.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows = [rows[i] for i in np.linspace(0, len(rows) - 1, min(arguments.images, len(rows))).astype(int)]
    spec = dataclasses.replace(fs.zoo.NETWORKS[arguments.preprocess].preprocessing, resize="stretch", shorter_side=None)

    graph = fs.load(data / arguments.model)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    oracle = ort.InferenceSession(str(data / arguments.model), options, providers=["CPUExecutionProvider"])
    sessions = {}
    for name in arguments.formats.split(","):
        plan = fs.partition(graph, arguments.device, name, objective="coverage")
        sessions[name] = fs.compile(plan)
        print(f"{name}: {plan.fpga_mac_share:.1%} of multiply-accumulates on {arguments.device}")

    feed, output = graph.inputs[0].name, graph.outputs[0].name
    ranks: dict[str, list[int]] = {name: [] for name in ("fp32", *sessions)}
    agree = dict.fromkeys(sessions, 0)
    started = time.perf_counter()
    for count, row in enumerate(rows, 1):
        x = fs.zoo.preprocess(spec, data / arguments.set / row["file"])
        logits = {"fp32": oracle.run([output], {feed: x})[0]}
        logits |= {name: session.run({feed: x})[output] for name, session in sessions.items()}
        for name, values in logits.items():
            ranks[name].append(int((values[0] > values[0, int(row["label"])]).sum()))
        for name in sessions:
            agree[name] += int(logits[name].argmax() == logits["fp32"].argmax())
        if count % 50 == 0 or count == len(rows):
            print(f"{count} images, {time.perf_counter() - started:.0f} s", flush=True)
            for name, found in ranks.items():
                top1, top5 = np.mean(np.array(found) < 1), np.mean(np.array(found) < 5)
                same = f"  same class as fp32 {agree[name] / count:.1%}" if name in agree else ""
                print(f"  {name:12} top-1 {top1:6.1%}  top-5 {top5:6.1%}{same}", flush=True)


if __name__ == "__main__":
    main()
