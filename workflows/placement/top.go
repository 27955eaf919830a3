package placement

import "slices"

// top keeps the first few, in order, of all that it is offered, and counts the rest. It saves sorting ten thousand nodes to
// tell of eight.
type top[T any] struct {
	kept    []T
	passed  int // offered and not kept
	compare func(a, b T) int
}

func newTop[T any](size int, compare func(a, b T) int) *top[T] {
	return &top[T]{kept: make([]T, 0, size), compare: compare}
}

func (t *top[T]) offer(x T) {
	if len(t.kept) == cap(t.kept) {
		t.passed++
		last := len(t.kept) - 1
		if t.compare(x, t.kept[last]) >= 0 {
			return
		}
		t.kept = t.kept[:last]
	}
	i, _ := slices.BinarySearchFunc(t.kept, x, t.compare)
	t.kept = slices.Insert(t.kept, i, x)
}
