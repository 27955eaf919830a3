//go:build faultpoints

package activities

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/nextstack/nextstack/workflows/steps"
)

// FaultPoints returns a Hook for crash tests, in builds with the tag "faultpoints" only. With NEXTSTACK_FAULTPOINTS set to a
// directory, a process that comes to the boundary of a step for which a file KIND.STEP.before, KIND.STEP.after (or
// .undo-before, .undo-after) exists there removes the file, writes one with the ending .reached, and stands still until that
// is gone: so a test can kill whichever process it wants at exactly that moment.
func FaultPoints() Hook {
	dir := os.Getenv("NEXTSTACK_FAULTPOINTS")
	if dir == "" {
		return nil
	}
	return faultPoints(dir)
}

type faultPoints string

func (d faultPoints) Before(ctx context.Context, t steps.Token) error {
	d.stop(ctx, t, "before")
	return nil
}

func (d faultPoints) After(ctx context.Context, t steps.Token, err error) error {
	d.stop(ctx, t, "after")
	return err
}

func (d faultPoints) Repeat(steps.Token) int { return 1 }

func (d faultPoints) stop(ctx context.Context, t steps.Token, at string) {
	if t.Undo {
		at = "undo-" + at
	}
	armed := filepath.Join(string(d), t.Kind+"."+t.Step+"."+at)
	reached := armed + ".reached"
	if os.Rename(armed, reached) != nil {
		return // not armed, or somebody else took it
	}
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for ctx.Err() == nil {
		if _, err := os.Stat(reached); err != nil {
			return
		}
		<-poll.C
	}
}
