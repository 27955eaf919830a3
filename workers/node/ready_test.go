package node

import (
	"cmp"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// mountedPools are pools that have to be made ready, and taken away. One may be away.
type mountedPools struct {
	*storage.Fake
	mu    sync.Mutex
	away  string
	as    problem.Kind // what its error is
	ready []string
	kept  []steps.PoolOnNode
	keeps int
	hang  chan struct{} // if not nil, measuring waits for it
}

func (m *mountedPools) here(p steps.PoolOnNode) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.Pool == m.away {
		return problem.New(cmp.Or(m.as, problem.Unavailable), "pool %s is away", p.Pool)
	}
	return nil
}

func (m *mountedPools) List(ctx context.Context, p steps.PoolOnNode) ([]steps.FileFound, error) {
	if err := m.here(p); err != nil {
		return nil, err
	}
	return m.Fake.List(ctx, p)
}

func (m *mountedPools) Usage(ctx context.Context, p steps.PoolOnNode) api.PoolUsage {
	m.mu.Lock()
	hang := m.hang
	m.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return m.Fake.Usage(ctx, p)
}

func (m *mountedPools) Ready(_ context.Context, p steps.PoolOnNode) error {
	if err := m.here(p); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ready = append(m.ready, p.Pool)
	return nil
}

func (m *mountedPools) Keep(_ context.Context, pools []steps.PoolOnNode) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keeps++
	m.kept = pools
	return nil
}

// TestGuestsWaitForTheirPools: nothing is mounted after a reboot.
func TestGuestsWaitForTheirPools(t *testing.T) {
	f := newAgent(t, newServer(t), nil)
	root := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolGluster, Path: api.MountDir + "/x"}
	data := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: "/data"}
	pools := &mountedPools{Fake: f.pool}
	f.pools = pools
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestActivityEnvironment()
	f.register(env, &identity{})
	plan := steps.VMPlan{
		VM: api.NewID(), Name: "web", Disk: steps.DiskPlan{Volume: api.NewID(), Pool: root.Pool, PoolPath: root.Path, Type: root.Type},
		Data: []steps.DataDisk{{Volume: api.NewID(), Pool: data}},
	}
	create := func() error {
		_, err := env.ExecuteActivity(steps.CreateDomain.Name, steps.Envelope[steps.VMPlan]{In: plan})
		if err != nil {
			return steps.FromActivity("create", "n1", err)
		}
		return nil
	}
	for _, away := range []string{root.Pool, data.Pool} {
		pools.away = away
		require.Equal(t, problem.Unavailable, problem.KindOf(create()))
		domains, err := f.driver.List(t.Context())
		require.NoError(t, err)
		require.Empty(t, domains, "it is not defined with what is not there")
	}
	pools.away, pools.ready = "", nil
	require.NoError(t, create())
	require.Equal(t, []string{root.Pool, data.Pool}, pools.ready)
}

func TestWhatIsNoPoolOfTheNodeIsNotKept(t *testing.T) {
	s := newServer(t)
	pool := steps.PoolOnNode{
		Pool: api.NewID(), Type: api.PoolGluster, Path: api.MountDir + "/x", Shared: true, Source: api.PoolSource{Hosts: []string{"10.0.0.9"}, Name: "gv0"},
	}
	s.pools = []api.AgentPool{{ID: pool.Pool, Type: pool.Type, Path: pool.Path, Shared: true, Source: pool.Source}}
	f := newAgent(t, s, func(c *Config) { c.ReportEvery = 100 * time.Millisecond })
	pools := &mountedPools{Fake: f.pool}
	f.pools = pools
	f.start(t)
	kept := func(want ...steps.PoolOnNode) func() bool {
		return func() bool {
			pools.mu.Lock()
			defer pools.mu.Unlock()
			if pools.keeps == 0 || len(pools.kept) != len(want) {
				return false
			}
			for i := range want {
				if pools.kept[i].Pool != want[i].Pool || pools.kept[i].Source.Name != want[i].Source.Name {
					return false
				}
			}
			return true
		}
	}
	require.Eventually(t, kept(pool), 10*time.Second, 10*time.Millisecond)
	s.set(func() { s.pools = nil })
	require.Eventually(t, kept(), 10*time.Second, 10*time.Millisecond)
}

// TestAPoolThatDoesNotAnswerIsTheSameTroubleEachTime: each other word would be written down, and told to all who listen.
func TestAPoolThatDoesNotAnswerIsTheSameTroubleEachTime(t *testing.T) {
	f := newAgent(t, newServer(t), nil)
	hang := make(chan struct{})
	pools := &mountedPools{Fake: f.pool}
	f.pools = pools
	p := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: "/vms"}
	r := &reporter{agent: f.agent, pools: map[string]steps.PoolOnNode{p.Pool: p}, said: map[string]string{}}
	broken := r.usage(t.Context())
	require.Contains(t, broken[0].Error, "not a pool", "it was never prepared")
	pools.mu.Lock()
	pools.hang = hang
	pools.mu.Unlock()
	for range 2 {
		require.Equal(t, broken, r.usage(t.Context()), "what was wrong is wrong still")
	}
	_, err := f.pool.Prepare(t.Context(), p)
	require.NoError(t, err)
	close(hang)
	require.Eventually(t, func() bool { return r.usage(t.Context())[0].Error == "" }, 10*time.Second, 10*time.Millisecond)
}
