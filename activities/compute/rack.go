package compute

import "sync"

// Rack connects fakes as a network connects machines: guests move between those that are in the same one. Its zero value is
// empty and ready.
type Rack struct {
	mu    sync.Mutex
	fakes map[string]*Fake // by URI
}

// Plug puts f into the rack, where others reach it at uri. A fake that was there under this URI is unplugged.
func (r *Rack) Plug(uri string, f *Fake) {
	r.mu.Lock()
	if r.fakes == nil {
		r.fakes = map[string]*Fake{}
	}
	r.fakes[uri] = f
	r.mu.Unlock()
	f.mu.Lock()
	f.rack, f.uri = r, uri
	f.mu.Unlock()
}

// at returns who is reached at uri; nil: nobody.
func (r *Rack) at(uri string) *Fake {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fakes[uri]
}

// MovePoint is a moment of a fake's move.
type MovePoint string

// The moments, in order. With post-copy part of the memory is still at the source when the guest has arrived.
const (
	MovePrepared MovePoint = "prepared" // the target has an empty, paused domain; the guest runs at the source
	MoveCopied   MovePoint = "copied"   // most of the memory is there; the guest runs at the source
	MoveSwitched MovePoint = "switched" // it is paused on both sides
	MoveArrived  MovePoint = "arrived"  // it runs at the target; the source does not know yet
)

// MoveFate is what happens to a move at such a moment.
type MoveFate int

// The fates.
const (
	MoveGoesOn MoveFate = iota
	// MoveFails: the source is told that it failed, and the guest goes on there. After it has arrived it is too late.
	MoveFails
	// MoveSourceDies: the source's hypervisor daemon dies and comes back: it ends what was not finished. A guest that was paused
	// for the switch stays so, because nobody told the source how it went on.
	MoveSourceDies
	// MoveTargetDies: the target's hypervisor daemon dies and comes back: it throws away what had not arrived.
	MoveTargetDies
	// MoveBreaks: both sides lose each other for good. With post-copy, a guest that was switched is in two halves; without it,
	// it is as if the source had died.
	MoveBreaks
)
