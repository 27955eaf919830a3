package node

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workers/node/guard"
	"github.com/nextstack/nextstack/workflows/steps"
)

// fakeGuardian is a guardian in memory.
type fakeGuardian struct {
	mu      sync.Mutex
	promise guard.Promise
	stopped []string
	dead    bool
	sees    []string // nil: all
}

func (g *fakeGuardian) Run(ctx context.Context) { <-ctx.Done() }

func (g *fakeGuardian) Renew(_ context.Context, until time.Duration) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead {
		return errors.New("no guardian")
	}
	g.promise.Renew(until)
	return nil
}

func (g *fakeGuardian) Status(_ context.Context, running ...string) (guard.State, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead {
		return guard.State{}, errors.New("no guardian")
	}
	blind := g.sees != nil && slices.ContainsFunc(running, func(vm string) bool { return !slices.Contains(g.sees, vm) })
	return guard.State{Until: g.promise.Until, Armed: g.promise.Valid(guard.Boottime()), Stopped: g.stopped, Blind: blind}, nil
}

func (g *fakeGuardian) Noted(_ context.Context, vms []string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(vms) > 0 {
		g.stopped = nil
	}
	return nil
}

func TestLeaseComesWithReportsAndIsGuarded(t *testing.T) {
	s := newServer(t)
	f := newAgent(t, s, func(c *Config) { c.ReportEvery = time.Hour })
	g := &fakeGuardian{stopped: []string{"a"}}
	f.lease = newLease(g, f.log)
	s.orders = api.AgentOrders{Lease: 3, Noted: []string{"a"}}
	before := guard.Boottime()
	f.start(t)
	first := s.wait(t, "anything", anything)
	require.False(t, first.Guarded, "there was no lease to hold it to")
	require.Equal(t, []string{"a"}, first.Stopped)
	second := s.wait(t, "another, long before the hour is over: the lease is short", func(r api.AgentReport) bool { return r.Guarded })
	require.Empty(t, second.Stopped)
	after := guard.Boottime()
	g.mu.Lock()
	until := g.promise.Until
	g.mu.Unlock()
	require.Greater(t, until, before+3*time.Second)
	require.LessOrEqual(t, until, after+3*time.Second, "from when the report was sent, not from when the answer came")

	g.mu.Lock()
	g.dead = true
	g.mu.Unlock()
	s.wait(t, "nobody guarding", func(r api.AgentReport) bool { return !r.Guarded })
}

// TestAGuardianThatLooksInTheWrongPlaceIsNotCountedOn: the server would start guests elsewhere that it has not stopped.
func TestAGuardianThatLooksInTheWrongPlaceIsNotCountedOn(t *testing.T) {
	g := &fakeGuardian{sees: []string{"a"}}
	g.promise.Renew(guard.Boottime() + time.Hour)
	l := newLease(g, noLog)
	told := func(trouble string, vms ...api.VMObservation) bool {
		r := &api.AgentReport{VMs: vms, Error: trouble}
		l.tell(t.Context(), r)
		return r.Guarded
	}
	a, b := api.VMObservation{ID: "a", Phase: api.PhaseRunning}, api.VMObservation{ID: "b", Phase: api.PhasePaused}
	off := api.VMObservation{ID: "c", Phase: api.PhaseStopped}
	require.True(t, told("", a, off), "what does not run it need not see")
	require.True(t, told("", a, b), "it may have ended since the node was looked at")
	require.False(t, told("", a, b), "but not twice")
	require.False(t, told("libvirt is away", a, b), "nobody has looked since")
	require.True(t, told("", a))
	require.True(t, told("", a, b))
}

func TestStraysAreRemovedFirst(t *testing.T) {
	s := newServer(t)
	f := newAgent(t, s, nil)
	f.lease = newLease(nil, f.log)
	stray, stays := api.NewID(), api.NewID()
	for _, vm := range []string{stray, stays} {
		require.NoError(t, f.driver.Create(t.Context(), steps.VMPlan{VM: vm}, compute.DomainFiles{Disk: compute.QCOW2("/d")}))
	}
	s.orders = api.AgentOrders{Stop: []string{stray, api.NewID()}}
	f.start(t)
	r := s.wait(t, "the stray gone, at once", func(r api.AgentReport) bool { return len(r.VMs) == 1 })
	require.Equal(t, stays, r.VMs[0].ID)
}

func TestHAGuestsNeedALease(t *testing.T) {
	f := newAgent(t, newServer(t), nil)
	f.lease = newLease(nil, f.log)
	now := time.Hour
	f.lease.clock = func() time.Duration { return now }
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestActivityEnvironment()
	f.register(env, &identity{})
	start := func(plan steps.VMPlan) error {
		_, err := env.ExecuteActivity(steps.StartDomain.Name, steps.Envelope[steps.VMPlan]{In: plan})
		return steps.FromActivity("start", "n1", err)
	}
	ha, other := steps.VMPlan{VM: api.NewID(), Name: "ha", HA: true}, steps.VMPlan{VM: api.NewID(), Name: "other"}
	for _, p := range []steps.VMPlan{ha, other} {
		require.NoError(t, f.driver.Create(t.Context(), p, compute.DomainFiles{Disk: compute.QCOW2("/d")}))
		f.driver.PowerOff(p.VM)
	}
	require.NoError(t, start(other))
	err := start(ha)
	require.Equal(t, problem.Unavailable, problem.KindOf(err), "%v", err)
	require.NoError(t, f.lease.renew(t.Context(), now, 20*time.Second))
	require.NoError(t, start(ha))
	f.driver.PowerOff(ha.VM)
	now += 18 * time.Second
	require.Equal(t, problem.Unavailable, problem.KindOf(start(ha)), "too little is left of it")
	require.NoError(t, f.lease.renew(t.Context(), now, 0))
	require.Error(t, start(ha), "an answer without a lease renews nothing")

	// Nor does a guest go on from its memory.
	now += time.Hour
	goOn := func(plan steps.VMPlan) []error {
		_, back := env.ExecuteActivity(steps.SwitchCheckpoint.Name, steps.Envelope[steps.CheckpointSwitch]{In: steps.CheckpointSwitch{VM: plan}})
		_, undo := env.ExecuteActivity(steps.UndoSave.Name, steps.Envelope[steps.GuestSave]{In: steps.GuestSave{VM: plan}})
		return []error{steps.FromActivity("switch", "n1", back), steps.FromActivity("undo save", "n1", undo)}
	}
	for _, err := range goOn(ha) {
		require.Contains(t, err.Error(), "is HA, and this node may not run such VMs now")
	}
	// Nor with the copy of a disk.
	move := func(vm *steps.VMPlan) error {
		_, err := env.ExecuteActivity(steps.SwitchVolume.Name, steps.Envelope[steps.VolumeCopy]{In: steps.VolumeCopy{VM: vm}})
		return steps.FromActivity("switch", "n1", err)
	}
	require.ErrorContains(t, move(&ha), "is HA, and this node may not run such VMs now")
	require.NoError(t, move(&other))
	require.NoError(t, move(nil))
	for _, err := range goOn(other) { // refused later, for want of a pool
		require.Error(t, err)
		require.NotContains(t, err.Error(), "is HA")
	}
}

func TestPace(t *testing.T) {
	require.Equal(t, 5*time.Second, pace(5*time.Second, nil))
	require.Equal(t, 5*time.Second, pace(5*time.Second, &api.AgentOrders{Lease: 20, ReportEvery: 2}))
	require.Equal(t, 10*time.Second, pace(5*time.Second, &api.AgentOrders{Lease: 40, ReportEvery: 10}))
	require.Equal(t, 6*time.Second, pace(time.Minute, &api.AgentOrders{Lease: 18}))
}

func TestAnAgentWhoseLibvirtNeverAnsweredIsAlive(t *testing.T) {
	s := newServer(t)
	f := newAgent(t, s, nil)
	f.driver.Disconnect(true)
	f.start(t)
	r := s.wait(t, "an error", func(r api.AgentReport) bool { return r.Error != "" })
	require.Zero(t, r.Inventory.Cores)
}

// TestWhatCameBackMeanwhileIsNotStopped: the order to stop it is about what was here before.
func TestWhatCameBackMeanwhileIsNotStopped(t *testing.T) {
	f := newAgent(t, newServer(t), nil)
	f.lease = newLease(nil, f.log)
	r := &reporter{agent: f.agent, said: map[string]string{}}
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestActivityEnvironment()
	f.register(env, &identity{})
	vm := api.NewID()
	require.NoError(t, f.driver.Create(t.Context(), steps.VMPlan{VM: vm}, compute.DomainFiles{Disk: compute.QCOW2("/d")}))
	obey := func(began time.Time) bool {
		report := r.look(t.Context())
		return r.obey(t.Context(), began, r.lease.now(), report, &api.AgentOrders{Stop: []string{vm}})
	}
	there := func() bool {
		list, err := f.driver.List(t.Context())
		require.NoError(t, err)
		return len(list) > 0
	}
	began := time.Now()
	_, err := env.ExecuteActivity(steps.StartDomain.Name, steps.Envelope[steps.VMPlan]{In: steps.VMPlan{VM: vm}})
	require.NoError(t, err)
	require.False(t, obey(began))
	require.True(t, there(), "a step has worked on it since the report was begun")
	require.True(t, obey(time.Now()))
	require.False(t, there())
}
