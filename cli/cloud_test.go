package cli_test

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/accounts"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/fleet"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/server"
	"github.com/nextstack/nextstack/api/store"
)

var system = auth.ControlPlane("test")

// cloud is the real API over the in-memory store. Only what carries operations out is a double, the hands below.
type cloud struct {
	host     string
	port     int
	password string // of the admin
	token    string // of a login of the admin
	poolPath string
	joined   *api.AgentJoined
	hands    *hands
}

// client returns a client with a token.
func (c *cloud) client(token string) (*client.Client, error) {
	return client.New(client.Config{Host: c.host, Port: c.port, Token: token})
}

// newCloud starts a cloud with one node.
func newCloud(dir string, cleanup func(func())) (_ *cloud, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	cleanup(func() { cancel(); running.Wait() })

	kv := store.NewMemory()
	cache := store.NewCache(kv, store.Root)
	running.Go(func() { cache.Run(ctx) })
	if err := cache.WaitFor(ctx, 1); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	vault, err := store.OpenVault(filepath.Join(dir, "keys"))
	if err != nil {
		return nil, err
	}
	adm := admission.New(kv, vault)
	if err := adm.Bootstrap(ctx); err != nil {
		return nil, err
	}
	accts := accounts.New(kv, accounts.Options{JoinToken: "join-me"})
	c := &cloud{poolPath: filepath.Join(dir, "pool"), hands: &hands{kv: kv, admission: adm, told: map[string]chan string{}}}
	if c.password, _, err = accts.EnsureAdmin(ctx); err != nil {
		return nil, err
	}
	quiet := slog.New(slog.DiscardHandler)
	srv := server.New(server.Options{
		KV: kv, Cache: cache, Admission: adm, Engine: c.hands, Planner: &planner{kv, adm}, Accounts: accts, Version: "1.2.3", Dir: dir, Log: quiet,
		Fleet:     fleet.New(fleet.Options{KV: kv, Cache: cache, Credentials: accts, Vault: vault, TemporalAddress: "127.0.0.1:7233", Namespace: "nextstack", Log: quiet}),
		ImageFile: func(i *api.Image) string { return filepath.Join(dir, "images", i.ID) },
		ExportFile: func(id, format string) (string, string, error) {
			path := filepath.Join(dir, id+"."+format)
			return path, exportSum, os.WriteFile(path, []byte(exportText), 0o600)
		},
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c.host = "127.0.0.1"
	c.port = l.Addr().(*net.TCPAddr).Port
	running.Go(func() { _ = srv.Serve(ctx, l, time.Second) })
	running.Go(func() { c.hands.work(ctx, &running, cache.Subscribe(ctx, 0)) })
	return c, c.furnish(ctx)
}

// furnish logs the admin in and adds the node.
func (c *cloud) furnish(ctx context.Context) error {
	anybody, err := c.client("")
	if err != nil {
		return err
	}
	in, err := anybody.Login(ctx, api.Login{User: accounts.AdminName, Password: c.password})
	if err != nil {
		return err
	}
	c.token = in.Token
	if c.joined, err = anybody.Join(ctx, api.AgentJoin{Name: "node-1", Token: "join-me"}); err != nil {
		return err
	}
	return c.report(ctx)
}

// report tells the server of the node, and of its pools if there are any.
func (c *cloud) report(ctx context.Context) error {
	agent, err := c.client(c.joined.Credential)
	if err != nil {
		return err
	}
	r := api.AgentReport{Sent: time.Now(), Inventory: api.Inventory{
		Hostname: "node-1", Arch: "x86_64", Accel: "kvm", Machine: "q35", CPUModel: "Epyc", Cores: 8, Memory: 16 * api.GiB,
		Versions: map[string]string{"libvirt": "9.0.0"},
	}}
	orders, err := agent.Report(ctx, c.joined.ID, r)
	if err != nil || len(orders.Pools) == 0 {
		return err
	}
	for _, p := range orders.Pools {
		r.Inventory.Pools = append(r.Inventory.Pools, api.PoolUsage{Pool: p.ID, Capacity: 100 * api.GiB, Free: 60 * api.GiB})
	}
	_, err = agent.Report(ctx, c.joined.ID, r)
	return err
}

// exportText is what everything is that is exported, and exportSum its SHA-256.
const exportText = "a disk\n"

var exportSum = func() string {
	sum := sha256.Sum256([]byte(exportText))
	return hex.EncodeToString(sum[:])
}()

// hands carry operations out by saying that they are done. The name of the target decides what happens: bad-* fails in its
// second step, slow-* waits until it is cancelled or told to go on, stuck-* until it is resumed.
type hands struct {
	kv        store.KV
	admission *admission.Admission

	mu     sync.Mutex
	told   map[string]chan string // by operation
	report api.AuditReport        // what an audit finds
}

func (h *hands) Cancel(_ context.Context, op string) error { return h.tell(op, "cancel") }
func (h *hands) Resume(_ context.Context, op string) error { return h.tell(op, "resume") }

// Progress tells how far the slow ones are.
func (h *hands) Progress(ctx context.Context, id string) (*api.Progress, error) {
	op, err := store.Get[api.Operation](ctx, h.kv, system, "", id)
	if err != nil || !strings.HasPrefix(op.Target.Name, "slow-") {
		return nil, err
	}
	return &api.Progress{
		Step: "compute.migrate", Done: 3 * api.GiB, Total: 4 * api.GiB, Rate: 100 * api.MiB,
		Migrate: &api.MoveProgress{Remaining: api.GiB, Dirty: 20 * api.MiB, Iteration: 3, ExpectedDowntime: 280, Throttle: 20},
	}, nil
}

func (h *hands) URL(op string) string { return "http://temporal.example/" + op }

func (h *hands) tell(op, what string) error {
	h.ear(op) <- what
	return nil
}

func (h *hands) ear(op string) chan string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.told[op] == nil {
		h.told[op] = make(chan string, 16)
	}
	return h.told[op]
}

// work takes every operation that is accepted.
func (h *hands) work(ctx context.Context, running *sync.WaitGroup, sub *store.Subscription) {
	begun := map[string]bool{}
	for batch := range sub.Changes() {
		for _, c := range batch {
			if c.Deleted || !strings.HasPrefix(c.Key, store.Prefix(api.KindOperation, "")) {
				continue
			}
			op := &api.Operation{}
			if err := store.Decode(c.Entry, op); err != nil {
				panic(err)
			}
			if op.State == api.OpAccepted && !begun[op.ID] {
				begun[op.ID] = true
				running.Go(func() {
					if err := h.carryOut(ctx, op); err != nil && ctx.Err() == nil {
						panic(fmt.Sprintf("%s: %v", op.Kind, err))
					}
				})
			}
		}
	}
}

// stepsOf returns a plausible step table.
func stepsOf(kind string) []api.StepRecord {
	switch kind {
	case api.OpVMCreate:
		return []api.StepRecord{{Name: "place", Where: "control"}, {Name: "volume.create", Where: "node-1"}, {Name: "domain.define", Where: "node-1"}}
	default:
		return []api.StepRecord{{Name: "prepare", Where: "control"}, {Name: "apply", Where: "control"}}
	}
}

func (h *hands) carryOut(ctx context.Context, op *api.Operation) error {
	out := admission.Outcome{Operation: op.ID, State: api.OpRunning, Steps: stepsOf(op.Kind)}
	for i := range out.Steps {
		out.Steps[i].State = api.StepPending
	}
	record := func(state api.OperationState) error {
		out.State = state
		return h.admission.Record(ctx, system, out, nil)
	}
	out.Steps[0].State, out.Steps[0].Attempts = api.StepRunning, 1
	if err := record(api.OpRunning); err != nil {
		return err
	}
	out.Steps[0].State, out.Steps[1].State = api.StepDone, api.StepRunning
	if err := record(api.OpRunning); err != nil {
		return err
	}
	var err error
	switch how, _, _ := strings.Cut(op.Target.Name, "-"); {
	case how == "bad" && op.RetryOf == "":
		out.Error = problem.New(problem.NoCapacity, "no node has room").Because("node-1 has 0 of 8 cores free").Try("add a node")
		out.Steps[1].State, out.Steps[1].Attempts, out.Steps[1].Error = api.StepFailed, 3, out.Error
		if err := record(api.OpUndoing); err != nil {
			return err
		}
		out.Steps[0].State, out.State = api.StepUndone, api.OpFailed
		return h.admission.Settle(ctx, system, out)
	case how == "slow":
		select {
		case what := <-h.ear(op.ID):
			if what == "cancel" {
				out.Steps[0].State, out.Steps[1].State, out.State = api.StepUndone, api.StepUndone, api.OpCancelled
				return h.admission.Settle(ctx, system, out)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	case how == "stuck":
		out.Error = problem.New(problem.Unavailable, "node-1 does not answer")
		if err := record(api.OpStuck); err != nil {
			return err
		}
		select {
		case <-h.ear(op.ID):
		case <-ctx.Done():
			return ctx.Err()
		}
		out.Error = nil
	}
	for i := range out.Steps {
		out.Steps[i].State, out.Steps[i].Attempts = api.StepDone, 1
	}
	out.State = api.OpSucceeded
	if out.Result, err = h.result(ctx, op); err != nil {
		return err
	}
	return h.admission.Settle(ctx, system, out)
}

// result is what an operation finds, and what its last steps write.
func (h *hands) result(ctx context.Context, op *api.Operation) (json.RawMessage, error) {
	switch op.Kind {
	case api.OpImageImport:
		return json.Marshal(api.ImageImported{SHA256: strings.Repeat("ab", 32), Size: 20 * api.MiB, VirtualSize: 64 * api.MiB})
	case api.OpAudit:
		h.mu.Lock()
		defer h.mu.Unlock()
		r := h.report
		if strings.Contains(string(op.Request), `"repair":true`) {
			r.Findings = append([]api.Finding(nil), r.Findings...)
			for i := range r.Findings {
				r.Findings[i].Repaired = true
			}
		}
		return json.Marshal(r)
	case api.OpVMCreate:
		return nil, store.Retry(ctx, func() error {
			vm, err := store.Get[api.VM](ctx, h.kv, system, op.Target.Project, op.Target.ID)
			if err != nil {
				return err
			}
			node, err := store.Find[api.Agent](ctx, h.kv, system, "", "node-1")
			if err != nil {
				return err
			}
			vm.Status.Agent, vm.Status.AgentName = node.ID, node.Name
			d := store.NewDraft(system)
			d.Update(vm)
			_, err = d.Commit(ctx, h.kv)
			return err
		})
	case api.OpVolumeExport:
		var work api.VolumeExportWork
		if err := json.Unmarshal(op.Plan.Input, &work); err != nil {
			return nil, err
		}
		return json.Marshal(api.ImageExported{Format: work.Format, SHA256: exportSum, Size: int64(len(exportText))})
	case api.OpSnapshotCreate:
		return json.Marshal(api.SnapshotTaken{Frozen: true, Pause: 12345 * time.Microsecond})
	case api.OpCheckpointCreate:
		return json.Marshal(api.CheckpointTaken{Memory: 42 * api.MiB, Pause: 67890 * time.Microsecond})
	case api.OpHostUpdate:
		return nil, h.applyHost(ctx, op)
	case api.OpHostDrain, api.OpHostRecover, api.OpHostBalance:
		plan, err := h.drained(ctx, op)
		if err != nil {
			return nil, err
		}
		return json.Marshal(plan)
	default:
		return nil, nil
	}
}

// applyHost writes down what was decided about a node.
func (h *hands) applyHost(ctx context.Context, op *api.Operation) error {
	var change api.AgentChange
	if err := json.Unmarshal(op.Plan.Input, &change); err != nil {
		return err
	}
	return store.Retry(ctx, func() error {
		agent, err := store.Get[api.Agent](ctx, h.kv, system, "", change.Agent)
		if err != nil {
			return err
		}
		agent.Spec, agent.Labels = change.Spec, change.Labels
		d := store.NewDraft(system)
		d.Update(agent)
		_, err = d.Commit(ctx, h.kv)
		return err
	})
}

// drained tells of every VM of a node that it has moved; but pinned-* stays, and lost-* fails.
func (h *hands) drained(ctx context.Context, op *api.Operation) (*api.MovePlan, error) {
	vms, err := store.List[api.VM](ctx, h.kv, system, "*")
	if err != nil {
		return nil, err
	}
	var plan api.MovePlan
	if op.Kind == api.OpHostRecover {
		plan.Proof = &api.Proof{Kind: api.ProofOperator, Detail: "admin says so", At: time.Now()}
	}
	for _, vm := range vms {
		if vm.Status.Agent == "" || op.Target.ID != "" && vm.Status.Agent != op.Target.ID {
			continue
		}
		m := api.Move{VM: api.RefTo(vm), From: vm.Status.AgentName, To: "node-2", Kind: api.MoveLive, Operation: api.NewID(), State: api.OpSucceeded}
		switch how, _, _ := strings.Cut(vm.Name, "-"); how {
		case "pinned":
			plan.Stays = append(plan.Stays, api.Move{VM: m.VM, From: m.From, Reason: "it is pinned to node-1"})
			continue
		case "lost":
			m.State, m.Error = api.OpFailed, problem.New(problem.Timeout, "it did not converge")
		}
		plan.Moves = append(plan.Moves, m)
	}
	return &plan, nil
}

// planner tells what would be done, as the acceptance sees it; where a VM would go, it makes up.
type planner struct {
	kv        store.KV
	admission *admission.Admission
}

func (p *planner) plan(ctx context.Context, kind string, err error) (*api.DryRun, error) {
	d := &api.DryRun{Kind: kind, Steps: stepsOf(kind)}
	if err != nil {
		d.Error = problem.From(err)
		return d, nil
	}
	agents, err := store.List[api.Agent](ctx, p.kv, system, "")
	if err != nil {
		return nil, err
	}
	d.Decision = &api.Decision{}
	for _, a := range agents {
		if a.Spec.Cordoned {
			d.Decision.Refused = append(d.Decision.Refused, api.Refusal{Node: a.ID, Name: a.Name, Reason: "it is cordoned: " + a.Spec.CordonReason})
			continue
		}
		d.Decision.Node, d.Decision.Name = a.ID, a.Name
		d.Decision.Ranked = append(d.Decision.Ranked, api.Candidate{Node: a.ID, Name: a.Name, Score: 0.5, Terms: map[string]float64{"spread": 0.5}})
	}
	if d.Decision.Node == "" {
		d.Error = problem.New(problem.NoCapacity, "no node can take it").Try("uncordon one")
	}
	return d, nil
}

func (p *planner) PlanVMCreate(ctx context.Context, h auth.Handle, o admission.Options, req api.VMCreate) (*api.DryRun, error) {
	vm, err := p.admission.Preview(ctx, h, o, req)
	d, err := p.plan(ctx, api.OpVMCreate, err)
	if vm != nil && d != nil && d.Decision != nil {
		d.Decision.Strategy = cmp.Or(vm.Spec.Placement, api.Spread)
	}
	return d, err
}

func (p *planner) PlanMigrate(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VMMigrate) (*api.DryRun, error) {
	_, _, err := p.admission.PreviewMigrate(ctx, h, o, ref, req)
	return p.plan(ctx, api.OpVMMigrate, err)
}

func (p *planner) PlanMigrateVolume(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VolumeMigrate) (*api.DryRun, error) {
	move, err := p.admission.PreviewMigrateVolume(ctx, h, o, ref, req)
	d, failed := p.plan(ctx, api.OpVolumeMigrate, err)
	if failed != nil || err != nil && problem.Is(err, problem.NotFound) {
		return d, failed
	}
	v, err := store.Find[api.Volume](ctx, p.kv, h, o.Project, ref)
	if err != nil {
		return nil, err
	}
	d.Volume = &api.VolumeMoving{Volume: api.RefTo(v), From: "a-pool", To: req.Pool, Node: move.Agent.Name, Size: v.Spec.Size, Seconds: v.Spec.Size / max(1, req.Bandwidth)}
	for _, id := range v.VMs() {
		vm, err := store.Get[api.VM](ctx, p.kv, h, v.Project, id)
		if err != nil {
			return nil, err
		}
		has := api.RefTo(vm)
		d.Volume.VM, d.Volume.Live = &has, vm.Status.Phase == api.PhaseRunning
	}
	return d, nil
}

func (p *planner) PlanDrain(ctx context.Context, _ auth.Handle, _ admission.Options, ref string, _ api.HostDrain) (*api.DryRun, error) {
	host, err := store.Find[api.Agent](ctx, p.kv, system, "", ref)
	if err != nil {
		return nil, err
	}
	return p.moves(ctx, &api.Operation{Kind: api.OpHostDrain, Target: api.RefTo(host)})
}

func (p *planner) PlanBalance(ctx context.Context, _ auth.Handle, _ admission.Options, _ api.HostBalance) (*api.DryRun, error) {
	return p.moves(ctx, &api.Operation{Kind: api.OpHostBalance})
}

func (p *planner) moves(ctx context.Context, op *api.Operation) (*api.DryRun, error) {
	plan, err := (&hands{kv: p.kv}).drained(ctx, op)
	if err != nil {
		return nil, err
	}
	for i := range plan.Moves {
		plan.Moves[i].State, plan.Moves[i].Operation, plan.Moves[i].Error = "", "", nil
	}
	return &api.DryRun{Kind: op.Kind, Steps: stepsOf(op.Kind), Plan: plan}, nil
}

// world sets what audits find.
func (h *hands) world(state string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.report = api.AuditReport{Findings: []api.Finding{}, Checked: map[string]int{"domain": 2, "port": 3}}
	switch state {
	case "dirty":
		h.report.Findings = []api.Finding{{Side: "libvirt", Kind: "domain", ID: "ghost", Extra: true, Problem: "nobody owns it", Fix: "remove it"}}
	case "dark":
		h.report.Skipped = []string{"node-1: does not answer"}
	}
}

// start starts a cloud for a Go test.
func start(t *testing.T) *cloud {
	t.Helper()
	c, err := newCloud(t.TempDir(), t.Cleanup)
	require.NoError(t, err)
	return c
}

// env returns the environment of a gnext that talks to the cloud.
func (c *cloud) env() map[string]string {
	return map[string]string{"GNEXT_HOST": c.host, "GNEXT_PORT": strconv.Itoa(c.port), "GNEXT_TOKEN": c.token}
}
