package fence

import (
	"context"
	"sync"

	"github.com/nextstack/nextstack/api/problem"
)

// Fake is a device that lives in memory. The zero value is one whose node is off.
type Fake struct {
	mu   sync.Mutex
	on   bool
	dead bool
	jam  bool
	// Cut, if not nil, is called when the power goes off: what a power cut does to the node.
	Cut func()
}

// PowerOff implements Driver.
func (f *Fake) PowerOff(ctx context.Context) error {
	on, err := f.Status(ctx)
	if err != nil || !on {
		return err
	}
	f.mu.Lock()
	jam, cut := f.jam, f.Cut
	f.on = jam
	f.mu.Unlock()
	if jam {
		<-ctx.Done()
		return problem.New(problem.Timeout, "its power is still on")
	}
	if cut != nil {
		cut()
	}
	return nil
}

// Status implements Driver.
func (f *Fake) Status(ctx context.Context) (on bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() != nil || f.dead {
		return false, problem.New(problem.Unavailable, "the fence device does not answer")
	}
	return f.on, nil
}

// On gives the node power.
func (f *Fake) On() { f.set(func() { f.on = true }) }

// Kill takes the device's own power, or gives it back.
func (f *Fake) Kill(dead bool) { f.set(func() { f.dead = dead }) }

// Jam makes the device accept orders and not carry them out, until it is mended.
func (f *Fake) Jam(jam bool) { f.set(func() { f.jam = jam }) }

func (f *Fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}
