"""The console command `isthmus`."""

def main() -> int:
    raise SystemExit("not yet")
