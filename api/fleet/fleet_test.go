package fleet

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/accounts"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

var system = auth.ControlPlane("test")

type kit struct {
	t        *testing.T
	kv       *store.Memory
	cache    *store.Cache
	accounts *accounts.Accounts
	vault    *store.Vault
	fleet    *Fleet
	at       time.Time
}

func newKit(t *testing.T) *kit {
	t.Helper()
	k := &kit{t: t, kv: store.NewMemory(), at: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC).Add(-2 * SilentAfter)}
	k.cache = store.NewCache(k.kv, store.Root)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); k.cache.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	var err error
	k.vault, err = store.OpenVault(filepath.Join(t.TempDir(), "keys"))
	require.NoError(t, err)
	k.accounts = accounts.New(k.kv, accounts.Options{JoinToken: "join"})
	k.fleet = New(Options{
		KV: k.kv, Cache: k.cache, Credentials: k.accounts, Vault: k.vault, Now: func() time.Time { return k.at },
		TemporalAddress: "10.0.0.1:7233", Namespace: "nextstack", Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, k.cache.WaitFor(t.Context(), 1))
	k.pass(2 * SilentAfter) // the time that a server that has just begun gives all agents
	return k
}

// pass lets time go by, with sweeps as often as they are made.
func (k *kit) pass(d time.Duration) {
	k.t.Helper()
	for end := k.at.Add(d); ; k.at = k.at.Add(min(SilentAfter/3, end.Sub(k.at))) {
		require.NoError(k.t, k.fleet.Sweep(k.t.Context(), k.at))
		if !k.at.Before(end) {
			return
		}
	}
}

// join makes an agent and returns its ID and authority.
func (k *kit) join(name string) (string, auth.Handle) {
	k.t.Helper()
	j, err := k.fleet.Join(k.t.Context(), api.AgentJoin{Name: name, Token: "join"})
	require.NoError(k.t, err)
	h, err := k.accounts.Authenticate(k.t.Context(), j.Credential)
	require.NoError(k.t, err)
	return j.ID, h
}

func (k *kit) put(r api.Resource) {
	k.t.Helper()
	d := store.NewDraft(system)
	if r.GetMeta().Revision == 0 {
		d.Create(r)
	} else {
		d.Update(r)
	}
	rev, err := d.Commit(k.t.Context(), k.kv)
	require.NoError(k.t, err)
	require.NoError(k.t, k.cache.WaitFor(k.t.Context(), rev))
}

func (k *kit) vm(agent string, phase api.Phase) *api.VM {
	vm := &api.VM{Meta: api.Meta{ID: api.NewID(), Name: "vm-" + api.NewID()[:8], Project: "default"}}
	vm.Status = api.VMStatus{Phase: phase, Agent: agent, Observed: k.at.Add(-time.Minute)}
	k.put(vm)
	return k.read(vm)
}

func (k *kit) read(vm *api.VM) *api.VM {
	k.t.Helper()
	got, err := store.Get[api.VM](k.t.Context(), k.kv, system, vm.Project, vm.ID)
	require.NoError(k.t, err)
	return got
}

func (k *kit) agent(id string) *api.Agent {
	k.t.Helper()
	a, err := store.Get[api.Agent](k.t.Context(), k.kv, system, "", id)
	require.NoError(k.t, err)
	beat, err := store.ReadBeat(k.t.Context(), k.kv, id)
	require.NoError(k.t, err)
	beat.Show(a)
	return a
}

func (k *kit) pool(p *api.Pool) api.PoolStatus {
	k.t.Helper()
	got, err := store.Get[api.Pool](k.t.Context(), k.kv, system, "", p.ID)
	require.NoError(k.t, err)
	return got.Status
}

func (k *kit) report(h auth.Handle, r api.AgentReport) *api.AgentOrders {
	k.t.Helper()
	if r.Sent.IsZero() {
		r.Sent = k.at
	}
	o, err := k.fleet.Report(k.t.Context(), h, h.Who().Name, r)
	require.NoError(k.t, err)
	return o
}

func TestJoin(t *testing.T) {
	k := newKit(t)
	_, err := k.fleet.Join(t.Context(), api.AgentJoin{Name: "node-1", Token: "wrong"})
	require.True(t, problem.Is(err, problem.Unauthenticated))
	_, err = k.fleet.Join(t.Context(), api.AgentJoin{Name: "Node 1", Token: "join"})
	require.True(t, problem.Is(err, problem.Invalid))

	ids := make([]string, 8) // all at once under one name: one agent
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			j, err := k.fleet.Join(t.Context(), api.AgentJoin{Name: "node-1", Token: "join"})
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = j.ID
			if j.TemporalAddress != "10.0.0.1:7233" || j.Namespace != "nextstack" {
				t.Errorf("%+v", j)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		require.Equal(t, ids[0], id)
	}
	a := k.agent(ids[0])
	require.Equal(t, api.PhaseUnavailable, a.Status.Phase)
	require.Equal(t, 512*api.MiB, a.Spec.ReservedMemory)
	other, _ := k.join("node-2")
	require.NotEqual(t, ids[0], other)
}

func TestOnlyTheAgentItselfReports(t *testing.T) {
	k := newKit(t)
	a, _ := k.join("node-a")
	_, b := k.join("node-b")
	for _, h := range []auth.Handle{b, system, {}, auth.Authenticated(auth.Principal{Name: "admin", Role: auth.Admin}), auth.Authenticated(auth.Principal{Name: a, Role: auth.Admin})} {
		_, err := k.fleet.Report(t.Context(), h, a, api.AgentReport{Sent: k.at})
		require.True(t, problem.Is(err, problem.Forbidden), "%+v", h.Who())
		_, err = k.fleet.Seed(t.Context(), h, a, api.NewID())
		require.True(t, problem.Is(err, problem.Forbidden), "%+v", h.Who())
	}
}

func TestReportUpdatesTheAgent(t *testing.T) {
	k := newKit(t)
	id, h := k.join("node-1")
	for i, claim := range []api.Amount{{VCPUs: 2, Memory: api.GiB}, {VCPUs: 3, Memory: 2 * api.GiB}} {
		value, err := json.Marshal(claim)
		require.NoError(t, err)
		d := store.NewDraft(system)
		d.Claim(store.NodeClaim(id, string(rune('a'+i))), string(value))
		rev, err := d.Commit(t.Context(), k.kv)
		require.NoError(t, err)
		require.NoError(t, k.cache.WaitFor(t.Context(), rev))
	}
	k.report(h, api.AgentReport{Inventory: api.Inventory{Cores: 8, Memory: 16 * api.GiB}, Sent: k.at.Add(-time.Hour)})
	a := k.agent(id)
	require.Equal(t, api.PhaseReady, a.Status.Phase)
	require.Empty(t, a.Status.Reason)
	require.Equal(t, 8, a.Status.Inventory.Cores)
	require.Equal(t, api.Amount{VCPUs: 5, Memory: 3 * api.GiB}, a.Status.Claimed)
	require.Equal(t, k.at, a.Status.Observed, "by our clock, not the agent's")
}

func TestObservations(t *testing.T) {
	k := newKit(t)
	id, h := k.join("node-1")
	for name, c := range map[string]struct {
		was    api.Phase
		reason string
		saw    api.Phase // "": not there
		why    string    // of the node
		change func(*api.VM)
		sent   time.Duration
		want   api.Phase
		writes bool
	}{
		"as it was":                       {was: "running", saw: "running", want: "running"},
		"powered off from inside":         {was: "running", saw: "stopped", want: "stopped", writes: true},
		"started by hand":                 {was: "stopped", saw: "running", want: "running", writes: true},
		"paused":                          {was: "running", saw: "paused", want: "paused", writes: true},
		"paused by its disk":              {was: "running", saw: "paused", why: "a disk gave an error", want: "paused", writes: true},
		"the same for another reason":     {was: "paused", saw: "paused", why: "a disk gave an error", want: "paused", writes: true},
		"goes on":                         {was: "paused", reason: "a disk gave an error", saw: "running", want: "running", writes: true},
		"gone":                            {was: "running", want: "error", writes: true},
		"stopped and gone":                {was: "stopped", want: "error", writes: true},
		"came back":                       {was: "error", reason: reasonMissing, saw: "running", want: "running", writes: true},
		"still gone":                      {was: "error", reason: reasonMissing, want: "error"},
		"came back, undone operation":     {was: "error", saw: "running", want: "running", writes: true},
		"still gone, undone operation":    {was: "error", want: "error", writes: true},
		"another error is not ours":       {was: "error", reason: "disk is full", saw: "running", want: "error"},
		"being made":                      {was: "creating", saw: "running", want: "creating"},
		"being deleted":                   {was: "deleting", want: "deleting"},
		"between phases":                  {was: "running", saw: "creating", want: "running"},
		"an operation holds it":           {was: "running", saw: "stopped", change: func(vm *api.VM) { vm.Operation = api.NewID() }, want: "running"},
		"an operation holds it, gone":     {was: "running", change: func(vm *api.VM) { vm.Operation = api.NewID() }, want: "running"},
		"seen before the last change":     {was: "stopped", saw: "running", sent: -2 * time.Minute, want: "stopped"},
		"seen at the last change":         {was: "stopped", saw: "running", sent: -time.Minute, want: "stopped"},
		"a clock that is ahead":           {was: "running", saw: "stopped", sent: time.Hour, want: "stopped", writes: true},
		"on another node":                 {was: "running", change: func(vm *api.VM) { vm.Status.Agent = api.NewID() }, want: "running"},
		"not seen for long is written":    {was: "running", saw: "running", change: func(vm *api.VM) { vm.Status.Observed = k.at.Add(-refreshAfter) }, want: "running", writes: true},
		"another node lies of what it is": {was: "running", saw: "stopped", change: func(vm *api.VM) { vm.Status.Agent = api.NewID() }, want: "running"},
	} {
		t.Run(name, func(t *testing.T) {
			k.t = t
			vm := &api.VM{Meta: api.Meta{ID: api.NewID(), Name: "vm-" + api.NewID()[:8], Project: "default"}}
			vm.Status = api.VMStatus{Phase: c.was, Reason: c.reason, Agent: id, Observed: k.at.Add(-time.Minute)}
			if c.change != nil {
				c.change(vm)
			}
			k.put(vm)
			before := k.read(vm)
			r := api.AgentReport{Sent: k.at.Add(c.sent)}
			if c.saw != "" {
				r.VMs = []api.VMObservation{{ID: vm.ID, Phase: c.saw, Reason: c.why}}
			}
			r.VMs = append(r.VMs, api.VMObservation{ID: api.NewID(), Phase: api.PhaseRunning}) // unknown: for the audit
			k.report(h, r)
			after := k.read(vm)
			require.Equal(t, c.want, after.Status.Phase)
			require.Equal(t, c.writes, after.Revision != before.Revision, "written")
			if c.want == api.PhaseError {
				require.NotEmpty(t, after.Status.Reason)
			} else {
				require.Equal(t, c.why, after.Status.Reason)
			}
			require.False(t, after.Status.Observed.After(k.at))
			d := store.NewDraft(system)
			d.Delete(after)
			rev, err := d.Commit(t.Context(), k.kv)
			require.NoError(t, err)
			require.NoError(t, k.cache.WaitFor(t.Context(), rev))
		})
	}
}

func TestPools(t *testing.T) {
	k := newKit(t)
	a, ha := k.join("node-a")
	b, hb := k.join("node-b")
	p := &api.Pool{Meta: api.Meta{ID: api.NewID(), Name: "fast"}, Spec: api.PoolSpec{Type: api.PoolDir, Path: "/vms", Agents: []string{a, b}}, Status: api.PoolStatus{Phase: api.PhaseReady, Capacity: 7, Free: 5}}
	k.put(p)
	usage := func(capacity, free int64, trouble string) api.AgentReport {
		return api.AgentReport{Inventory: api.Inventory{Pools: []api.PoolUsage{{Pool: p.ID, Capacity: capacity, Free: free, Error: trouble}}}}
	}

	// look leaves out what its nodes say.
	look := func() api.PoolStatus {
		s := k.pool(p)
		s.Agents = nil
		return s
	}

	// A pool that has just been made is asked for, and does not look broken before the first answer.
	require.Equal(t, []api.AgentPool{{ID: p.ID, Type: api.PoolDir, Path: "/vms"}}, k.report(ha, api.AgentReport{}).Pools)
	require.Equal(t, api.PoolStatus{Phase: api.PhaseReady, Capacity: 7, Free: 5}, look())

	k.report(ha, usage(1000, 800, ""))
	k.report(hb, usage(2000, 1500, ""))
	require.Equal(t, api.PoolStatus{Phase: api.PhaseReady, Capacity: 3000, Free: 2300}, look())

	k.report(hb, usage(2000, 1490, "")) // less than a hundredth of the pool
	require.EqualValues(t, 2300, k.pool(p).Free)
	k.report(hb, usage(2000, 1400, ""))
	require.EqualValues(t, 2200, k.pool(p).Free)

	k.report(hb, usage(0, 0, "no such directory"))
	require.Equal(t, api.PoolStatus{Phase: api.PhaseReady, Reason: "node-b: no such directory", Capacity: 1000, Free: 800}, look())
	require.Equal(t, []api.PoolAgent{{Agent: a, Reaches: true}, {Agent: b, Reason: "no such directory"}}, k.pool(p).Agents)
	k.report(ha, usage(0, 0, "read-only file system"))
	require.Equal(t, api.PhaseUnavailable, k.pool(p).Phase)
	k.report(ha, usage(1000, 800, ""))
	k.report(hb, usage(2000, 1500, ""))
	require.Equal(t, api.PoolStatus{Phase: api.PhaseReady, Capacity: 3000, Free: 2300}, look())

	// A node that falls silent takes its share with it.
	k.at = k.at.Add(SilentAfter)
	k.report(ha, usage(1000, 800, ""))
	require.NoError(t, k.fleet.Sweep(t.Context(), k.at))
	require.Equal(t, api.PoolStatus{Phase: api.PhaseReady, Reason: "node-b is suspect", Capacity: 1000, Free: 800}, look())

	require.Equal(t, []api.PoolAgent{{Agent: a, Reaches: true}, {Agent: b, Reason: "is suspect"}}, k.pool(p).Agents)

	// What an operation works on is left to it.
	held, err := store.Get[api.Pool](t.Context(), k.kv, system, "", p.ID)
	require.NoError(t, err)
	held.Operation, held.Status.Phase = api.NewID(), api.PhaseDeleting
	k.put(held)
	require.Empty(t, k.report(ha, usage(1, 1, "")).Pools)
	require.EqualValues(t, 1000, k.pool(p).Capacity)
}

// TestVolumesOfPoolsThatAreAway: they are unavailable, and ready again when the pool is; nothing is marked lost or deleted.
func TestVolumesOfPoolsThatAreAway(t *testing.T) {
	k := newKit(t)
	a, ha := k.join("node-a")
	b, hb := k.join("node-b")
	pool := func(name string, shared bool) *api.Pool {
		p := &api.Pool{Meta: api.Meta{ID: api.NewID(), Name: name}, Spec: api.PoolSpec{Type: api.PoolDir, Path: "/" + name, Shared: shared, Agents: []string{a, b}}, Status: api.PoolStatus{Phase: api.PhaseReady}}
		k.put(p)
		return p
	}
	near, far := pool("near", false), pool("far", true)
	volume := func(p *api.Pool, agent string, phase api.Phase, operation string) *api.Volume {
		v := &api.Volume{
			Meta: api.Meta{ID: api.NewID(), Name: "v-" + api.NewID()[:8], Project: api.DefaultProject, Operation: operation},
			Spec: api.VolumeSpec{Size: 600, Pool: p.ID}, Status: api.VolumeStatus{Phase: phase, Agent: agent},
		}
		k.put(v)
		return v
	}
	onA, onB, shared := volume(near, a, api.PhaseReady, ""), volume(near, b, api.PhaseReady, ""), volume(far, a, api.PhaseReady, "")
	held, failed := volume(far, "", api.PhaseReady, api.NewID()), volume(far, "", api.PhaseError, "")
	phase := func(v *api.Volume) api.VolumeStatus {
		t.Helper()
		got, err := store.Get[api.Volume](t.Context(), k.kv, system, v.Project, v.ID)
		require.NoError(t, err)
		return got.Status
	}
	report := func(h auth.Handle, near1, far1 string) {
		k.report(h, api.AgentReport{Inventory: api.Inventory{Pools: []api.PoolUsage{{Pool: near.ID, Capacity: 1000, Free: 1000, Error: near1}, {Pool: far.ID, Capacity: 1000, Free: 1000, Error: far1}}}})
	}
	report(ha, "", "")
	report(hb, "", "")
	require.EqualValues(t, 1200, k.pool(near).Promised, "two of 600 in twice 1000")
	require.Equal(t, 2, k.pool(near).Volumes)
	require.EqualValues(t, 1800, k.pool(far).Promised, "overcommitted")

	report(hb, "no such directory", "the server does not answer")
	require.Equal(t, api.PhaseReady, phase(onA).Phase)
	require.Equal(t, api.PhaseUnavailable, phase(onB).Phase)
	require.Equal(t, "its node cannot use pool near: no such directory", phase(onB).Reason)
	require.Equal(t, api.PhaseReady, phase(shared).Phase, "another node reaches it")
	report(ha, "", "the server does not answer")
	require.Equal(t, api.PhaseUnavailable, phase(shared).Phase)
	require.Contains(t, phase(shared).Reason, "pool far is unavailable: node-a: the server does not answer")
	require.Equal(t, api.PhaseReady, phase(held).Phase, "it is its operation's")
	require.Equal(t, api.PhaseError, phase(failed).Phase, "it has another trouble")
	report(ha, "", "")
	report(hb, "", "")
	for _, v := range []*api.Volume{onA, onB, shared} {
		require.Equal(t, api.PhaseReady, phase(v).Phase)
		require.Empty(t, phase(v).Reason)
	}
	require.Equal(t, api.PhaseError, phase(failed).Phase)
}

func TestSweep(t *testing.T) {
	k := newKit(t)
	a, ha := k.join("node-a")
	b, hb := k.join("node-b")
	k.report(ha, api.AgentReport{})
	k.report(hb, api.AgentReport{})
	start := k.at
	k.at = start.Add(SilentAfter - time.Second)
	require.NoError(t, k.fleet.Sweep(t.Context(), k.at))
	require.Equal(t, api.PhaseReady, k.agent(a).Status.Phase)
	k.report(hb, api.AgentReport{})
	k.at = start.Add(SilentAfter)
	require.NoError(t, k.fleet.Sweep(t.Context(), k.at))
	require.Equal(t, api.PhaseSuspect, k.agent(a).Status.Phase)
	require.Equal(t, k.at, k.agent(a).Status.Since)
	require.Equal(t, "has not reported since 2030-01-01T00:00:00Z", k.agent(a).Status.Reason)
	require.Equal(t, api.PhaseReady, k.agent(b).Status.Phase)
	revision := k.agent(a).Revision
	require.NoError(t, k.fleet.Sweep(t.Context(), k.at.Add(time.Second)))
	require.Equal(t, revision, k.agent(a).Revision, "nothing changed, so nothing is written")
	k.report(ha, api.AgentReport{})
	require.Equal(t, api.PhaseReady, k.agent(a).Status.Phase)
	require.Empty(t, k.agent(a).Status.Reason)
}

// A node that cannot be looked at is unavailable, and its VMs are not gone.
func TestReportWithError(t *testing.T) {
	k := newKit(t)
	id, h := k.join("node-1")
	vm := k.vm(id, api.PhaseRunning)
	k.report(h, api.AgentReport{Error: "libvirt does not answer", Inventory: api.Inventory{Cores: 8}})
	require.Equal(t, api.PhaseUnavailable, k.agent(id).Status.Phase)
	require.Equal(t, "libvirt does not answer", k.agent(id).Status.Reason)
	require.Equal(t, 8, k.agent(id).Status.Inventory.Cores)
	require.Equal(t, vm.Revision, k.read(vm).Revision)
	k.at = k.at.Add(SilentAfter)
	require.NoError(t, k.fleet.Sweep(t.Context(), k.at))
	require.Contains(t, k.agent(id).Status.Reason, "has not reported since", "now it is silent, which is something else")
	k.report(h, api.AgentReport{VMs: []api.VMObservation{{ID: vm.ID, Phase: api.PhaseRunning}}})
	require.Equal(t, api.PhaseReady, k.agent(id).Status.Phase)
	require.Equal(t, api.PhaseRunning, k.read(vm).Status.Phase)
}

func TestSeed(t *testing.T) {
	k := newKit(t)
	a, ha := k.join("node-a")
	b, hb := k.join("node-b")
	vm := k.vm(a, api.PhaseCreating)
	vm.Spec.Hostname, vm.Spec.SSHKeys, vm.Spec.UserData = "web", []string{"ssh-ed25519 AAAA"}, true
	k.put(vm)
	sealed, err := k.vault.Seal(`{"userData": "#cloud-config"}`, vm.ID)
	require.NoError(t, err)
	_, err = k.fleet.Seed(t.Context(), ha, a, vm.ID)
	require.True(t, problem.Is(err, problem.Internal), "the secret is missing: %v", err)
	_, err = k.kv.Commit(t.Context(), store.Tx{Puts: []store.Put{{Key: store.SecretKey(vm.ID), Value: sealed}}})
	require.NoError(t, err)

	seed, err := k.fleet.Seed(t.Context(), ha, a, vm.ID)
	require.NoError(t, err)
	require.Equal(t, &api.Seed{InstanceID: vm.ID, Hostname: "web", SSHKeys: []string{"ssh-ed25519 AAAA"}, UserData: "#cloud-config"}, seed)
	_, err = k.fleet.Seed(t.Context(), hb, b, vm.ID)
	require.True(t, problem.Is(err, problem.Forbidden))
	_, err = k.fleet.Seed(t.Context(), hb, a, vm.ID)
	require.True(t, problem.Is(err, problem.Forbidden))

	// The node that it is moving to makes its disk there.
	change := func(to string) {
		now := k.read(vm)
		now.Status.MovingTo = to
		k.put(now)
	}
	change(b)
	moved, err := k.fleet.Seed(t.Context(), hb, b, vm.ID)
	require.NoError(t, err)
	require.Equal(t, seed, moved)
	change("")

	// To somebody who may not have it, a VM that exists looks like one that does not.
	_, there := k.fleet.Seed(t.Context(), hb, b, vm.ID)
	gone := api.NewID()
	_, notThere := k.fleet.Seed(t.Context(), hb, b, gone)
	require.Equal(t, problem.From(there).Kind, problem.From(notThere).Kind)

	// The secret of another VM does not open as this one's.
	other := k.vm(a, api.PhaseCreating)
	other.Spec.UserData = true
	k.put(other)
	_, err = k.kv.Commit(t.Context(), store.Tx{Puts: []store.Put{{Key: store.SecretKey(other.ID), Value: sealed}}})
	require.NoError(t, err)
	_, err = k.fleet.Seed(t.Context(), ha, a, other.ID)
	require.True(t, problem.Is(err, problem.Internal))
	require.NotContains(t, err.Error(), "cloud-config")
}

func TestNobodyJoinsUnderTheNameOfALiveAgent(t *testing.T) {
	k := newKit(t)
	id, h := k.join("node-1")
	k.report(h, api.AgentReport{Inventory: api.Inventory{Hostname: "node-1"}})
	require.Equal(t, api.PhaseReady, k.agent(id).Status.Phase)

	_, err := k.fleet.Join(t.Context(), api.AgentJoin{Name: "node-1", Token: "join"})
	require.Equal(t, problem.Unavailable, problem.KindOf(err), "an agent waits, and a stranger is told to take another name")
	k.report(h, api.AgentReport{Inventory: api.Inventory{Hostname: "node-1"}}) // its credential still works

	k.at = k.at.Add(SilentAfter)
	again, _ := k.join("node-1")
	require.Equal(t, id, again)
}
