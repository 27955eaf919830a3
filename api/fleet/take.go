package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// recordEvery is how old what an agent's record says of the moment may get: how much of memory and pools is used just now.
// When it last reported is kept apart, in its beat.
const recordEvery = 5 * time.Minute

// taken is what became of a report.
type taken struct {
	revision int64
	wrote    bool          // the agent's record, not only its beat
	lease    time.Duration // 0: none
	stop     []string      // VMs that must not run there
}

// take writes what the agent says of itself, and grants it a lease. Both are one transaction, on condition that nobody has
// declared the node dead meanwhile. The first try trusts the cache: that is right almost always, and the condition tells when
// it is not.
func (f *Fleet) take(ctx context.Context, agent string, r *api.AgentReport) (t taken, err error) {
	trust := true
	err = store.Retry(ctx, func() error {
		beat, a, err := f.known(ctx, agent, trust)
		trust = false
		if err != nil {
			return err
		}
		now := f.Clock.Now()
		t = taken{}
		next := a.Status
		if err := f.status(ctx, a, &next, r, now, &t); err != nil {
			return err
		}
		beat.Observed, beat.Down = now, next.Phase == api.PhaseDown
		if !beat.Down {
			t.lease = f.lease()
			beat.Until, beat.Lease, beat.Guarded, beat.Life = now.Add(t.lease), t.lease, r.Guarded, f.Clock.Life()
		}
		d := store.NewDraft(f.self)
		d.Beat(agent, beat)
		if t.wrote = worthRecording(&a.Status, &next, now); t.wrote {
			a.Status = next
			a.Status.Observed = now
			beat.Show(a)
			d.Update(a)
		}
		t.revision, err = d.Commit(ctx, f.KV)
		return err
	})
	return t, err
}

// known returns an agent's beat and a copy of its record, in this order: the record is at least as new.
func (f *Fleet) known(ctx context.Context, agent string, trust bool) (beat store.Beat, a *api.Agent, err error) {
	if trust {
		if beat, err = store.CachedBeat(f.Cache, agent); err != nil {
			return beat, nil, err
		}
		if item, ok := f.Cache.Get(store.Key(api.KindAgent, "", agent)); ok {
			cached, err := store.Decoded[api.Agent](item)
			if err != nil {
				return beat, nil, err
			}
			c := *cached
			return beat, &c, nil
		}
	}
	if beat, err = store.ReadBeat(ctx, f.KV, agent); err != nil {
		return beat, nil, err
	}
	a, err = store.Get[api.Agent](ctx, f.KV, f.self, "", agent)
	return beat, a, err
}

// status works out what an agent is after a report.
func (f *Fleet) status(ctx context.Context, a *api.Agent, next *api.AgentStatus, r *api.AgentReport, now time.Time, t *taken) error {
	was := a.Status.Phase
	if r.Error == "" || r.Inventory.Cores > 0 { // else it does not know yet what it has
		next.Inventory = r.Inventory
	}
	next.ConfirmedOff = ""
	claimed, err := f.claimed(a.ID)
	if err != nil {
		return err
	}
	next.Claimed, next.Free = claimed, free(&a.Spec, &next.Inventory, claimed)
	if t.stop, err = f.strays(ctx, a, r); err != nil {
		return err
	}
	switch {
	case was == api.PhaseDown && a.Operation != "":
		next.Reason = "reports again; operation " + a.Operation + " is at work on it"
	case was == api.PhaseDown && len(t.stop) > 0:
		next.Reason = fmt.Sprintf("reports again; stops %d VMs that run elsewhere now", len(t.stop))
	case was == api.PhaseDown && r.Error != "":
		next.Reason = "reports again, but what it runs cannot be seen: " + r.Error
	default:
		next.Proof = nil
		next.Phase, next.Reason = f.aliveAs(a, r)
	}
	if next.Phase != was {
		next.Since = now
	}
	return nil
}

// aliveAs returns the phase of an agent that reports, and why it is not ready.
func (f *Fleet) aliveAs(a *api.Agent, r *api.AgentReport) (api.Phase, string) {
	if r.Error != "" {
		return api.PhaseUnavailable, r.Error
	}
	if twin := f.twin(a, r.Inventory.HostUUID); twin != nil {
		return api.PhaseUnavailable, fmt.Sprintf("its machine is agent %s already, by its UUID %s; if it is not, give it a UUID of its own (host_uuid in libvirtd.conf)", twin.Name, r.Inventory.HostUUID)
	}
	if a.Spec.Cordoned {
		return api.PhaseMaintenance, a.Spec.CordonReason
	}
	return api.PhaseReady, ""
}

// twin returns the agent that is alive on the same machine, if this one is to give way to it: who takes VMs stays, and else the
// older one. It is looked for only while an agent is not ready itself, or says something new: who comes finds who is there.
func (f *Fleet) twin(a *api.Agent, host string) *api.Agent {
	established := func(x *api.Agent) bool {
		return x.Status.Phase == api.PhaseReady || x.Status.Phase == api.PhaseMaintenance
	}
	if host == "" || established(a) && a.Status.Inventory.HostUUID == host {
		return nil
	}
	all, err := store.ListCached[api.Agent](f.Cache, f.self, "", "", 0, nil)
	if err != nil {
		return nil // the record itself was just read from there
	}
	for _, x := range all.Items {
		if x.ID == a.ID || x.Status.Inventory.HostUUID != host || !x.Status.Alive() {
			continue
		}
		older := x.Created.Before(a.Created) || x.Created.Equal(a.Created) && x.ID < a.ID
		if established(x) && !established(a) || established(x) == established(a) && older {
			return x
		}
	}
	return nil
}

// claimed returns the sum of what is promised of a node. It is derived from the claims each time and never counted along.
func (f *Fleet) claimed(agent string) (api.Amount, error) {
	var sum api.Amount
	claims, _, _ := f.Cache.List(store.NodePrefix(agent), "", 0, nil)
	for _, c := range claims {
		var a api.Amount
		if err := json.Unmarshal(c.Value, &a); err != nil {
			return sum, problem.Wrap(err, problem.Internal, "the claim at %s cannot be read", c.Key)
		}
		sum.VCPUs += a.VCPUs
		sum.Memory += a.Memory
	}
	return sum, nil
}

// free returns what can still be promised of a node. It is for people; placement reckons with the claims of its own moment.
func free(spec *api.AgentSpec, inv *api.Inventory, claimed api.Amount) api.Amount {
	ratio := spec.MemoryRatio
	if ratio == 0 {
		ratio = 1
	}
	vcpus := math.Floor(float64(inv.Cores) * spec.CPURatio)
	memory := math.Floor(float64(max(0, inv.Memory-spec.ReservedMemory)) * ratio)
	return api.Amount{VCPUs: max(0, int(min(vcpus, math.MaxInt32))-claimed.VCPUs), Memory: max(0, int64(min(memory, 1<<62))-claimed.Memory)}
}

// worthRecording reports whether an agent's record is written anew. What moves all the time has to move by a hundredth.
func worthRecording(was, now *api.AgentStatus, at time.Time) bool {
	if at.Sub(was.Observed) >= recordEvery {
		return true
	}
	a, b := *was, *now
	for _, s := range []*api.AgentStatus{&a, &b} {
		s.Observed, s.Lease = time.Time{}, api.Lease{}
	}
	if close100(a.Inventory.UsedMemory, b.Inventory.UsedMemory, b.Inventory.Memory) {
		b.Inventory.UsedMemory = a.Inventory.UsedMemory
	}
	if len(a.Inventory.Pools) == len(b.Inventory.Pools) {
		pools := make([]api.PoolUsage, len(b.Inventory.Pools))
		for i, p := range b.Inventory.Pools {
			if was := a.Inventory.Pools[i]; was.Pool == p.Pool && close100(was.Free, p.Free, p.Capacity) {
				p.Free = was.Free
			}
			pools[i] = p
		}
		if b.Inventory.Pools != nil {
			b.Inventory.Pools = pools
		}
	}
	return !same(&a, &b)
}

// close100 reports whether two amounts differ by less than a hundredth of the whole.
func close100(a, b, whole int64) bool {
	d := a - b
	if d < 0 {
		d = -d
	}
	return d == 0 || d < whole/100
}

// same compares as the store would: what is empty and what is missing are the same there.
func same(a, b *api.AgentStatus) bool {
	if reflect.DeepEqual(a, b) {
		return true
	}
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}
