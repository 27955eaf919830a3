package stack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The sides of a step.
const (
	Before = "before"
	After  = "after"
)

// Point is a boundary of a step of one operation, where its process can be made to stand still. The start of a workflow is
// the step "accept", its end the step "settle".
type Point struct {
	Kind, Step, At string
	Operation      string // ID; empty: whichever comes first
}

// String returns "vm.create disk before".
func (p Point) String() string { return p.Kind + " " + p.Step + " " + p.At }

func (p Point) file() string {
	return strings.TrimSuffix(strings.Join([]string{p.Kind, p.Step, p.At, p.Operation}, "."), ".")
}

// Faults is the directory by which a test and the processes of a stack talk about points.
type Faults string

// Arm makes the operation stand still when it comes to p.
func (f Faults) Arm(p Point) error { return os.WriteFile(f.path(p, ""), nil, 0o600) }

// Held reports whether an operation stands at p.
func (f Faults) Held(p Point) bool { return exists(f.path(p, ".reached")) }

// Expired reports whether an operation stood at p, and went on because the time of its step ran out.
func (f Faults) Expired(p Point) bool { return exists(f.path(p, ".expired")) }

// Release lets the operation at p go on, and disarms p if it was never reached.
func (f Faults) Release(p Point) error {
	for _, ending := range []string{"", ".reached", ".expired"} {
		if err := os.Remove(f.path(p, ending)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Await waits until operations stand at all of the points, or went past one.
func (f Faults) Await(ctx context.Context, points ...Point) error {
	return Poll(ctx, 5*time.Millisecond, func() error {
		var missing []string
		for _, p := range points {
			if !f.Held(p) && !f.Expired(p) {
				missing = append(missing, p.String())
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("not reached: %s", strings.Join(missing, ", "))
		}
		return nil
	})
}

func (f Faults) path(p Point, ending string) string { return filepath.Join(string(f), p.file()+ending) }

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Poll calls try until it succeeds or ctx is done; then the last error is returned.
func Poll(ctx context.Context, every time.Duration, try func() error) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("%w; last: %w", context.Cause(ctx), err)
		}
	}
}
