package node

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/testsuite"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/network"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

const joinToken = "let-me-in"

// fakeServer is the agent's part of the API.
type fakeServer struct {
	*httptest.Server
	mu      sync.Mutex
	members map[string]string // credential -> agent ID
	joins   int
	pools   []api.AgentPool
	orders  api.AgentOrders // what else is answered to reports
	reports chan api.AgentReport
	down    bool
}

func newServer(t *testing.T) *fakeServer {
	s := &fakeServer{members: map[string]string{}, reports: make(chan api.AgentReport, 1000)}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fail := func(p *problem.Problem) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(problem.TraitsOf(p.Kind).Status)
		_ = json.NewEncoder(w).Encode(p.Document())
	}
	if s.down {
		fail(problem.New(problem.Unavailable, "restarting"))
		return
	}
	if r.URL.Path == "/v1/agents/join" {
		var j api.AgentJoin
		_ = json.NewDecoder(r.Body).Decode(&j)
		if j.Token != joinToken {
			fail(problem.New(problem.Unauthenticated, "wrong join token"))
			return
		}
		s.joins++
		a := api.AgentJoined{ID: api.NewID(), Credential: api.NewID(), TemporalAddress: "127.0.0.1:1", Namespace: "n"}
		s.members[a.Credential] = a.ID
		_ = json.NewEncoder(w).Encode(a)
		return
	}
	id, ok := s.members[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	if !ok || !strings.HasPrefix(r.URL.Path, "/v1/agents/"+id+"/") {
		fail(problem.New(problem.Unauthenticated, "unknown token"))
		return
	}
	var rep api.AgentReport
	_ = json.NewDecoder(r.Body).Decode(&rep)
	o := s.orders
	o.Pools = s.pools
	_ = json.NewEncoder(w).Encode(o)
	s.reports <- rep
}

func (s *fakeServer) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// wait returns the first report that ok accepts.
func (s *fakeServer) wait(t *testing.T, what string, ok func(api.AgentReport) bool) api.AgentReport {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case r := <-s.reports:
			if ok(r) {
				return r
			}
		case <-deadline:
			t.Fatalf("no report with %s", what)
		}
	}
}

type fakeSwitch struct {
	mu    sync.Mutex
	ports []steps.PortFound
	err   error
}

func (f *fakeSwitch) Local(context.Context) (network.LocalInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return network.LocalInfo{ChassisID: "chassis", Version: "3.1.0"}, f.err
}

func (f *fakeSwitch) ListPorts(context.Context) ([]steps.PortFound, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ports, f.err
}

func (f *fakeSwitch) RemovePort(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, p := range f.ports {
		if p.Name == name {
			f.ports = append(f.ports[:i:i], f.ports[i+1:]...)
		}
	}
	return f.err
}

type fixture struct {
	*agent
	driver *compute.Fake
	pool   *storage.Fake
	sw     *fakeSwitch
}

func newAgent(t *testing.T, s *fakeServer, change func(*Config)) *fixture {
	cfg := Config{
		Server: s.URL, JoinToken: joinToken, DataDir: t.TempDir(), Name: "n1", ReportEvery: time.Hour, Version: "1.2.3",
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	require.NoError(t, cfg.complete())
	c, err := newClient(cfg.Server, cfg.Version)
	require.NoError(t, err)
	f := &fixture{driver: &compute.Fake{Inv: api.Inventory{Arch: "x86_64", Cores: 4, Memory: api.GiB}}, pool: &storage.Fake{}, sw: &fakeSwitch{}}
	f.agent = &agent{
		cfg: cfg, log: cfg.Log, api: c, driver: f.driver, pools: f.pool, sw: f.sw, host: &activities.Host{Log: cfg.Log}, facts: &switchFacts{}, dial: client.DialContext,
		disks: newPeers(cfg.PeerListen, cfg.PeerAddress, cfg.Server, cfg.Log),
	}
	return f
}

// start runs the agent until the test ends or the returned function is called, which returns its error.
func (f *fixture) start(t *testing.T) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

func anything(api.AgentReport) bool { return true }

func TestAgentJoinsOnceAndReports(t *testing.T) {
	s := newServer(t)
	pool := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: "/vms"}
	s.pools = []api.AgentPool{{ID: pool.Pool, Type: pool.Type, Path: pool.Path}}
	f := newAgent(t, s, nil)
	_, err := f.pool.Prepare(t.Context(), pool)
	require.NoError(t, err)
	vm := api.NewID()
	require.NoError(t, f.driver.Create(t.Context(), steps.VMPlan{VM: vm}, compute.DomainFiles{Disk: compute.QCOW2("/d")}))
	f.driver.AddStranger(api.NewID(), "stranger")
	stop := f.start(t)

	r := s.wait(t, "the pool that the first answer named", func(r api.AgentReport) bool { return len(r.Inventory.Pools) == 1 })
	require.Equal(t, []api.VMObservation{{ID: vm, Phase: api.PhaseRunning}}, r.VMs, "strangers are not reported")
	require.Equal(t, "chassis", r.Inventory.OVNChassis)
	require.Equal(t, map[string]string{"agent": "1.2.3", "ovs": "3.1.0"}, r.Inventory.Versions)
	require.Positive(t, r.Inventory.Pools[0].Free)
	require.WithinDuration(t, time.Now(), r.Sent, time.Minute)

	f.driver.PowerOff(vm)
	s.wait(t, "the VM off, long before the next report is due", func(r api.AgentReport) bool { return len(r.VMs) == 1 && r.VMs[0].Phase == api.PhaseStopped })

	info, err := os.Stat(f.identityFile())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.NoError(t, stop())

	again := newAgent(t, s, func(c *Config) { c.DataDir, c.JoinToken = f.cfg.DataDir, "" })
	stop = again.start(t)
	s.wait(t, "anything", anything)
	require.NoError(t, stop())
	require.Equal(t, 1, s.joins)
}

func TestAgentSaysThatLibvirtIsAway(t *testing.T) {
	s := newServer(t)
	f := newAgent(t, s, func(c *Config) { c.ReportEvery = 100 * time.Millisecond })
	vm := api.NewID()
	require.NoError(t, f.driver.Create(t.Context(), steps.VMPlan{VM: vm}, compute.DomainFiles{Disk: compute.QCOW2("/d")}))
	f.start(t)
	good := s.wait(t, "no error", func(r api.AgentReport) bool { return r.Error == "" })
	f.driver.Disconnect(true)
	bad := s.wait(t, "an error", func(r api.AgentReport) bool { return r.Error != "" })
	require.Equal(t, []api.VMObservation{{ID: vm, Phase: api.PhaseRunning}}, bad.VMs, "not seen is not gone")
	require.Equal(t, good.Inventory.Cores, bad.Inventory.Cores)
	later := s.wait(t, "an error", func(r api.AgentReport) bool { return r.Error != "" })
	require.Equal(t, bad.Sent, later.Sent, "an old look must not seem new")
	f.driver.Disconnect(false)
	r := s.wait(t, "no error", func(r api.AgentReport) bool { return r.Error == "" })
	require.True(t, r.Sent.After(bad.Sent))
}

func TestAgentSurvivesTheServer(t *testing.T) {
	s := newServer(t)
	s.down = true
	tokenFile := filepath.Join(t.TempDir(), "token")
	f := newAgent(t, s, func(c *Config) { c.JoinToken, c.JoinTokenFile, c.ReportEvery = "", tokenFile, 100*time.Millisecond })
	f.start(t)
	require.NoError(t, os.WriteFile(tokenFile, []byte("stale\n"), 0o600))
	s.set(func() { s.down = false })
	require.NoError(t, os.WriteFile(tokenFile, []byte(joinToken+"\n"), 0o600))
	s.wait(t, "anything", anything)
	s.set(func() { s.down = true })
	s.set(func() { s.down = false })
	s.wait(t, "anything", anything)

	s.set(func() { clear(s.members) }) // the server lost its data
	require.Eventually(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.joins == 2 }, 10*time.Second, 10*time.Millisecond)
	s.wait(t, "anything", anything)
	require.FileExists(t, f.identityFile()+".old")
}

func TestAgentWithoutTokenKeepsItsIdentity(t *testing.T) {
	s := newServer(t)
	f := newAgent(t, s, func(c *Config) { c.ReportEvery = 100 * time.Millisecond })
	stop := f.start(t)
	s.wait(t, "anything", anything)
	require.NoError(t, stop())
	var members map[string]string
	s.set(func() { members, s.members = s.members, map[string]string{} })
	f.cfg.JoinToken = ""
	var log lockedBuffer
	f.log = slog.New(slog.NewTextHandler(&log, nil))
	f.start(t)
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "THE SERVER DOES NOT KNOW THIS AGENT") }, 10*time.Second, 10*time.Millisecond)
	s.set(func() { s.members = members }) // a backup was restored
	for len(s.reports) > 0 {
		<-s.reports
	}
	s.wait(t, "anything", anything)
	require.Equal(t, 1, s.joins)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestJoinThatCannotWorkIsAnError(t *testing.T) {
	s := newServer(t)
	for what, change := range map[string]func(*Config){
		"wrong token": func(c *Config) { c.JoinToken = "wrong" },
		"no token":    func(c *Config) { c.JoinToken = "" },
	} {
		t.Run(what, func(t *testing.T) {
			err := newAgent(t, s, change).run(t.Context())
			require.Equal(t, problem.Unauthenticated, problem.KindOf(err), "%v", err)
		})
	}
	f := newAgent(t, s, nil)
	require.NoError(t, os.WriteFile(f.identityFile(), []byte("{"), 0o600))
	require.Equal(t, problem.Invalid, problem.KindOf(f.run(t.Context())))
	for what, cfg := range map[string]Config{
		"no server": {DataDir: "/d"}, "relative data directory": {DataDir: "d", Server: "s"}, "bad name": {DataDir: "/d", Server: "s", Name: "A b"},
	} {
		require.Equal(t, problem.Invalid, problem.KindOf(cfg.complete()), what)
	}
}

func TestLookAndRepair(t *testing.T) {
	f := newAgent(t, newServer(t), nil)
	pool := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: "/vms"}
	_, err := f.pool.Prepare(t.Context(), pool)
	require.NoError(t, err)
	volume, vm := api.NewID(), api.NewID()
	f.pool.Put(pool, "volumes/"+volume+".qcow2", storage.KindVolume, volume)
	require.NoError(t, f.driver.Create(t.Context(), steps.VMPlan{VM: vm}, compute.DomainFiles{Disk: compute.QCOW2("/d")}))
	f.sw.ports = []steps.PortFound{{Name: "tap1", Port: api.NewID()}}

	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestActivityEnvironment()
	f.register(env, &identity{})
	q := steps.NodeQuestion{Pools: []steps.PoolOnNode{pool}}
	look := func() (w steps.NodeWorld, err error) {
		v, err := env.ExecuteActivity(steps.LookAtNode.Name, steps.Envelope[steps.NodeQuestion]{In: q})
		if err != nil {
			return w, steps.FromActivity("look", "n1", err)
		}
		return w, v.Get(&w)
	}
	w, err := look()
	require.NoError(t, err)
	require.Len(t, w.Domains, 1)
	require.Len(t, w.Files, 1)
	require.Len(t, w.OVSPorts, 1)

	f.driver.AddStranger("11111111-1111-4111-8111-111111111111", "stranger")
	_, err = env.ExecuteActivity(steps.RepairNode.Name, steps.Envelope[steps.NodeRepair]{In: steps.NodeRepair{
		Domains: []string{"11111111-1111-4111-8111-111111111111", vm}, Files: w.Files, OVSPorts: []string{"tap1"}, Pools: q.Pools,
	}})
	require.Equal(t, problem.Conflict, problem.KindOf(steps.FromActivity("repair", "n1", err)))
	w, err = look()
	require.NoError(t, err)
	require.Len(t, w.Domains, 1, "the stranger stays, all else is gone")
	require.Empty(t, w.Files)
	require.Empty(t, w.OVSPorts)

	for _, kind := range []problem.Kind{problem.Unavailable, problem.Invalid, problem.Conflict, problem.NotFound, problem.Internal} {
		f.pools = &mountedPools{Fake: f.pool, away: pool.Pool, as: kind}
		w, err = look()
		require.NoError(t, err, "it is said which pool was not seen")
		require.Len(t, w.Unread, 1)
		require.Equal(t, pool.Pool, w.Unread[0].Pool)
		require.Contains(t, w.Unread[0].Why, "is away")
		require.Len(t, w.Domains, 1, "the rest is looked at all the same")
	}

	f.sw.mu.Lock()
	f.sw.err = errors.New("no switch")
	f.sw.mu.Unlock()
	_, err = look()
	require.ErrorContains(t, err, "no switch", "half a look would call the rest missing")
}

func TestServerAddresses(t *testing.T) {
	for in, want := range map[string]string{
		"http://10.0.0.1:8899": "http://10.0.0.1:8899", "http://10.0.0.1:8899/": "http://10.0.0.1:8899", "10.0.0.1:9000": "http://10.0.0.1:9000",
		"cloud": "http://cloud:8899", "https://cloud": "https://cloud:8899", "[fd00::1]:80": "http://[fd00::1]:80",
	} {
		c, err := newClient(in, "")
		require.NoError(t, err, in)
		require.Equal(t, want, c.Address(), in)
	}
	_, err := newClient("host:x", "")
	require.Error(t, err)
	c, err := newClient("10.0.0.1:8899", "")
	require.NoError(t, err)
	a := &agent{api: c}
	for in, want := range map[string]string{"0.0.0.0:7233": "10.0.0.1:7233", ":7233": "10.0.0.1:7233", "[::]:7233": "10.0.0.1:7233", "10.9.9.9:7233": "10.9.9.9:7233"} {
		require.Equal(t, want, a.temporalAddress(&identity{api.AgentJoined{TemporalAddress: in}}))
	}
}
