package store

import (
	"context"
	"encoding/json"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Beat is the last sign of life of an agent. It changes with every report and so has a small key of its own: the agent's
// record, its ETag and all who follow it are left in peace.
//
// It also is where a lease is renewed and where a node is declared dead: both write the beat on condition that it is as they
// have read it, so that exactly one of them happens.
type Beat struct {
	Observed time.Time     `json:"observed"`          // when it last reported, by the server's clock
	Until    time.Time     `json:"until,omitzero"`    // when the last lease that was granted is over; zero: there was none
	Lease    time.Duration `json:"lease,omitempty"`   // how long that lease was
	Guarded  bool          `json:"guarded,omitempty"` // when it was granted, a guardian held the node to it
	Life     string        `json:"life,omitempty"`    // of the server that granted it: its clock means something to itself only
	Down     bool          `json:"down,omitempty"`    // it was declared dead: no report renews anything before it has come back
	Revision int64         `json:"-"`                 // of the key; 0: there is none
}

// BeatKey returns where the last sign of life of an agent is.
func BeatKey(agent string) string { return Root + "beats/" + agent }

// ReadBeat returns an agent's beat; one that never reported has an empty one.
func ReadBeat(ctx context.Context, kv KV, agent string) (Beat, error) {
	e, err := kv.Get(ctx, BeatKey(agent))
	if problem.Is(err, problem.NotFound) {
		return Beat{}, nil
	}
	if err != nil {
		return Beat{}, err
	}
	return decodeBeat(e)
}

// CachedBeat is ReadBeat from the cache. Who also needs the agent's record from there reads it after the beat: then the record
// is at least as new.
func CachedBeat(c *Cache, agent string) (Beat, error) {
	item, ok := c.Get(BeatKey(agent))
	if !ok {
		return Beat{}, nil
	}
	if memo := item.memo.Load(); memo != nil {
		if b, ok := (*memo).(Beat); ok {
			return b, nil
		}
	}
	b, err := decodeBeat(item.Entry)
	if err == nil {
		memo := any(b)
		item.memo.Store(&memo)
	}
	return b, err
}

func decodeBeat(e Entry) (Beat, error) {
	b := Beat{Revision: e.Revision}
	return b, problem.Wrap(json.Unmarshal(e.Value, &b), problem.Internal, "the beat at %s cannot be read", e.Key)
}

// Beat writes an agent's beat, if it still is at the revision that b was read with.
func (d *Draft) Beat(agent string, b Beat) {
	value, err := json.Marshal(b)
	if err != nil && d.err == nil {
		d.err = problem.Wrap(err, problem.Internal, "the beat of agent %s cannot be written", agent)
	}
	d.claimed = true
	d.tx.Conditions = append(d.tx.Conditions, Condition{Key: BeatKey(agent), Revision: b.Revision})
	d.tx.Puts = append(d.tx.Puts, Put{Key: BeatKey(agent), Value: value})
}

// Show writes into a what the beat knows better.
func (b Beat) Show(a *api.Agent) {
	if b.Observed.After(a.Status.Observed) {
		a.Status.Observed = b.Observed
	}
	if b.Revision != 0 {
		a.Status.Lease = api.Lease{Until: b.Until, Guarded: b.Guarded}
	}
}

// withBeat completes a cached agent by its beat; what is no agent stays as it is.
func withBeat[T any](c *Cache, r *T) *T {
	a, ok := any(r).(*api.Agent)
	if !ok {
		return r
	}
	b, err := CachedBeat(c, a.ID)
	if err != nil || b.Revision == 0 {
		return r
	}
	shown := *a
	b.Show(&shown)
	return any(&shown).(*T)
}
