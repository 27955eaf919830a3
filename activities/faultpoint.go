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
// directory, a process that comes to the boundary of a step stands still there if it is armed: if a file exists in the
// directory that is called KIND.STEP.AT.OPERATION (for one operation, by its ID) or KIND.STEP.AT (for whichever comes first),
// where AT is before, after, undo-before or undo-after. The file is renamed to end in .reached, and the process goes on when
// that is removed: so a test can kill whichever process it wants at exactly that moment. Should the step's time run out
// first, the ending becomes .expired.
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
	for _, file := range []string{armed + "." + t.Operation, armed} {
		if os.Rename(file, file+".reached") == nil { // else it is not armed, or somebody else took it
			hold(ctx, file)
			return
		}
	}
}

func hold(ctx context.Context, file string) {
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for {
		if _, err := os.Stat(file + ".reached"); err != nil {
			return
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			_ = os.Rename(file+".reached", file+".expired") // it may have been released just now
			return
		}
	}
}
