"""What all client programs are given, and how they print: HOST:PORT PICTURE [--tls] [--ca FILE] [--key KEY]."""

import argparse


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("picture")
    parser.add_argument("--ca")
    parser.add_argument("--key", default="")
    given = parser.parse_args()
    given.host, _, port = given.address.partition(":")
    given.port = int(port)
    with open(given.picture, "rb") as file:
        given.data = file.read()
    return given


def headers(given):
    return [("authorization", f"Bearer {given.key}")] if given.key else []


def show(scores):
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[:5]
    for i in best:
        print(f"{i}\t{scores[i]:.6f}")
