"""People in a video of a fixed camera, without anyone having drawn a box. Runs in OpenCV's environment: VIDEO OUT EVERY SCALE.

The background is the median over time. What differs from it is foreground; what OpenCV's HOG person detector also takes for a person
becomes a box drawn tightly around the foreground inside the detection. Foreground of a person's shape that the detector missed counts as
well; foreground that fits neither (groups, waving tape) is kept apart as a region of which nothing is known.

Writes `frames` uint8 "frame y x 3" (RGB, scaled), and rows of `boxes` and `regions`: frame, x1, y1, x2, y2 in pixels of those frames.
"""

import sys
from pathlib import Path

import cv2  # pyright: ignore[reportMissingImports]
import numpy as np

HOG_SCALE = 1.5  # people in this video are smaller than the detector's 64 x 128 window


def main(video: str, out: str, every: int, scale: float) -> None:
    frames = _frames(video, every)
    background = np.median(frames[::4], 0).astype(np.int16)
    detector = cv2.HOGDescriptor()
    detector.setSVMDetector(cv2.HOGDescriptor_getDefaultPeopleDetector())
    boxes, regions, small = [], [], []
    for number, frame in enumerate(frames):
        people, unknown = _people(frame, _foreground(frame, background), detector)
        boxes += [[number, *(v * scale for v in box)] for box in people]
        regions += [[number, *(v * scale for v in box)] for box in unknown]
        size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
        small.append(cv2.cvtColor(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB))
    rows, others = (np.array(found, np.float32).reshape(-1, 5) for found in (boxes, regions))
    aside = Path(out).with_suffix(".aside.npz")
    np.savez_compressed(aside, frames=np.stack(small), boxes=rows, regions=others)
    aside.replace(out)


def _frames(video: str, every: int) -> np.ndarray:
    capture, found = cv2.VideoCapture(video), []
    while True:
        more, frame = capture.read()
        if not more:
            return np.stack(found[::every])
        found.append(frame)


def _foreground(frame: np.ndarray, background: np.ndarray) -> np.ndarray:
    difference = np.abs(frame.astype(np.int16) - background).max(2).astype(np.uint8)
    mask = (cv2.GaussianBlur(difference, (5, 5), 0) > 28).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((9, 5), np.uint8))
    return cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))


def _people(frame: np.ndarray, mask: np.ndarray, detector) -> tuple[list[list[float]], list[list[float]]]:
    """Boxes, and regions of which nothing is known; x1 y1 x2 y2."""
    large = cv2.resize(frame, None, fx=HOG_SCALE, fy=HOG_SCALE)
    found, weights = detector.detectMultiScale(large, winStride=(8, 8), scale=1.06)
    tight = []
    for (x, y, w, h), weight in zip(found, np.ravel(weights), strict=True):
        # The detector's window leaves a margin: an eighth of its height, a fifth of its width, on each side.
        x1, y1, x2, y2 = ((x + 0.2 * w) / HOG_SCALE, (y + 0.1 * h) / HOG_SCALE, (x + 0.8 * w) / HOG_SCALE, (y + 0.92 * h) / HOG_SCALE)
        box = _tightened(mask, x1, y1, x2, y2)
        if box is not None and weight > 0.2:
            tight.append((float(weight), box))
    components = cv2.connectedComponentsWithStats(mask)[2][1:]
    shaped = [c for c in components.tolist() if c[4] > 0.35 * c[2] * c[3] and 42 <= c[3] <= 190 and 1.7 <= c[3] / c[2] <= 4.2]
    tight += [(0.0, [float(x), float(y), float(x + w), float(y + h)]) for x, y, w, h, _ in shaped]
    kept: list[list[float]] = []
    for _, box in sorted(tight, key=lambda item: -item[0]):
        if all(_overlap(box, other) < 0.45 for other in kept):
            kept.append(box)
    unknown = []
    for x, y, w, h, area in components.tolist():
        region = [float(x), float(y), float(x + w), float(y + h)]
        if area > 150 and _unexplained(mask, region, kept) > 0.3:
            unknown.append(region)
    return kept, unknown


def _tightened(mask: np.ndarray, x1: float, y1: float, x2: float, y2: float) -> list[float] | None:
    """The foreground's own box inside a window; None if there is little of it."""
    left, top = max(int(x1), 0), max(int(y1), 0)
    part = mask[top : int(y2), left : int(x2)]
    if part.size == 0 or part.mean() < 0.25:
        return None
    rows, columns = np.nonzero(part.mean(1) > 0.05)[0], np.nonzero(part.mean(0) > 0.05)[0]
    box = [float(left + columns[0]), float(top + rows[0]), float(left + columns[-1] + 1), float(top + rows[-1] + 1)]
    return box if 1.4 <= (box[3] - box[1]) / (box[2] - box[0]) <= 4.5 else None


def _overlap(a: list[float], b: list[float]) -> float:
    """Area in common over that of the smaller box."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(width, 0) * max(height, 0) / smaller


def _unexplained(mask: np.ndarray, region: list[float], boxes: list[list[float]]) -> float:
    """Share of a region's foreground that lies in no box."""
    x1, y1, x2, y2 = (int(v) for v in region)
    rest = mask[y1:y2, x1:x2].copy()
    for box in boxes:
        a, b, c, d = (int(v) for v in box)
        rest[max(b - y1, 0) : max(d - y1, 0), max(a - x1, 0) : max(c - x1, 0)] = 0
    return float(rest.sum() / max(mask[y1:y2, x1:x2].sum(), 1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
