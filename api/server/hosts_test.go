package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// host makes a node that is in this phase.
func (k *kit) host(name string, phase api.Phase) *api.Agent {
	k.t.Helper()
	a := &api.Agent{
		Meta: api.Meta{ID: api.NewID(), Name: name, Created: time.Now().UTC()}, Spec: api.AgentSpec{CPURatio: 4},
		Status: api.AgentStatus{Phase: phase, Observed: time.Now()},
	}
	k.put(a)
	return a
}

// landed makes a VM that is on a node, with a pool.
func (k *kit) landed(name string, on *api.Agent, shared bool) *api.VM {
	k.t.Helper()
	pool := &api.Pool{
		Meta: api.Meta{ID: api.NewID(), Name: name + "-pool", Created: time.Now().UTC()},
		Spec: api.PoolSpec{Type: api.PoolDir, Path: "/" + name, Shared: shared}, Status: api.PoolStatus{Phase: api.PhaseReady},
	}
	vm := vms(1, func(_ int, v *api.VM) {
		v.Name, v.Spec.Pool, v.Status.Agent, v.Status.AgentName, v.Status.Volumes = name, pool.ID, on.ID, on.Name, []string{api.NewID()}
	})[0].(*api.VM)
	disk := &api.Volume{
		Meta: api.Meta{ID: vm.Status.Volumes[0], Name: name + "-root", Project: vm.Project, Created: time.Now().UTC()},
		Spec: api.VolumeSpec{Pool: pool.ID, Root: true, VM: vm.ID}, Status: api.VolumeStatus{Phase: api.PhaseReady, Agent: on.ID},
	}
	k.put(pool, vm, disk)
	return vm
}

func TestHostsAreChangedDrainedAndBalanced(t *testing.T) {
	k := newKit(t)
	a := k.host("node-a", api.PhaseReady)
	var op api.Operation
	r := k.call(k.admin, http.MethodPatch, "/v1/agents/node-a", `{"cpuRatio":2,"cordoned":true,"cordonReason":"disks","fence":{"driver":"ipmi","address":"bmc:623","user":"boss","password":"sesame"}}`, 202, &op)
	require.Equal(t, api.OpHostUpdate, op.Kind)
	require.NotContains(t, string(r.body), "sesame")
	var got api.Agent
	k.call(k.admin, http.MethodGet, "/v1/agents/"+a.ID, nil, 200, &got)
	require.Equal(t, op.ID, got.Operation)
	d := k.call(k.admin, http.MethodPost, "/v1/agents/node-a/drain", api.HostDrain{}, 409, nil).problem(t)
	require.Equal(t, problem.Locked, d.Code)
	k.settle(op.ID, api.OpSucceeded)
	k.call(k.admin, http.MethodPatch, "/v1/agents/node-a", `{"fence":{"driver":""}}`, 202, &op)
	k.settle(op.ID, api.OpSucceeded)
	k.call(k.admin, http.MethodPatch, "/v1/agents/node-a", `{"cpuRatio":1000}`, 422, nil)
	k.call(k.admin, http.MethodPatch, "/v1/agents/nobody", `{"cpuRatio":1}`, 404, nil)
	k.call(k.admin, http.MethodPatch, "/v1/agents/node-a", `{"cpuRatio":1}`, 412, nil, "If-Match", `"1"`)

	r = k.call(k.admin, http.MethodPost, "/v1/agents/node-a/drain", nil, 202, &op)
	require.Equal(t, "/v1/operations/"+op.ID, r.Header.Get("Location"))
	require.Equal(t, a.ID, op.Target.ID)
	k.settle(op.ID, api.OpSucceeded)
	k.call(k.admin, http.MethodPost, "/v1/agents/node-a/drain", api.HostDrain{Parallel: 99}, 422, nil)
	k.call(k.admin, http.MethodPost, "/v1/agents/..%2f/drain", nil, 422, nil)
	k.call(k.admin, http.MethodPost, "/v1/agents/balance", nil, 202, &op)
	require.Equal(t, api.OpHostBalance, op.Kind)
	k.call(k.admin, http.MethodPost, "/v1/agents/balance", api.HostBalance{Moves: 5}, 202, &op)
	k.call(k.admin, http.MethodPost, "/v1/agents/balance", api.HostBalance{Moves: -1}, 422, nil)

	k.call(k.admin, http.MethodDelete, "/v1/agents/node-a", nil, 409, nil)
	gone := k.host("node-b", api.PhaseDown)
	k.call(k.admin, http.MethodDelete, "/v1/agents/node-b", nil, 202, &op)
	k.settle(op.ID, api.OpSucceeded)
	k.call(k.admin, http.MethodGet, "/v1/agents/"+gone.ID, nil, 404, nil)
}

func TestOnlyUsersTouchHosts(t *testing.T) {
	k := newKit(t)
	agent := k.join("node-a")
	for _, e := range []endpoint{
		{http.MethodPatch, "/v1/agents/" + agent.ID, ""},
		{http.MethodDelete, "/v1/agents/" + agent.ID, ""},
		{http.MethodPost, "/v1/agents/" + agent.ID + "/drain", ""},
		{http.MethodPost, "/v1/agents/" + agent.ID + "/recover", ""},
		{http.MethodPost, "/v1/agents/balance", ""},
		{http.MethodPost, "/v1/agents/balance?dryRun=true", ""},
		{http.MethodPost, "/v1/projects/default/vms/x/migrate", ""},
		{http.MethodPatch, "/v1/projects/default/vms/x", ""},
		{http.MethodPost, "/v1/projects/default/vm-groups", ""},
	} {
		r := k.send(agent.Credential, e.method, e.path, "{}")
		require.Equal(t, 403, r.StatusCode, "%s: %s", e, r.body)
	}
}

func TestARecoveryIsConfirmedByWhoAsks(t *testing.T) {
	k := newKit(t)
	a := k.host("node-a", api.PhaseSuspect)
	k.call(k.admin, http.MethodPost, "/v1/agents/node-a/recover", api.HostRecover{}, 422, nil)
	k.call(k.admin, http.MethodPost, "/v1/agents/node-a/recover", nil, 422, nil)

	// The server has begun by itself and waits for a proof.
	running, err := k.admission.RecoverHost(context.Background(), system, admission.Options{}, a.ID, "")
	require.NoError(t, err)
	stuck := admission.Outcome{Operation: running.ID, State: api.OpStuck}
	require.NoError(t, k.admission.Record(context.Background(), system, stuck, nil))
	var op api.Operation
	k.call(k.admin, http.MethodPost, "/v1/agents/node-a/recover", api.HostRecover{ConfirmOff: true}, 202, &op)
	require.Equal(t, running.ID, op.ID)
	require.Equal(t, []string{"resume " + running.ID}, k.engine.told)
	var got api.Agent
	k.call(k.admin, http.MethodGet, "/v1/agents/node-a", nil, 200, &got)
	require.Equal(t, "admin", got.Status.ConfirmedOff)
	k.settle(op.ID, api.OpSucceeded)

	var next api.Operation
	k.call(k.admin, http.MethodPost, "/v1/agents/node-a/recover", api.HostRecover{ConfirmOff: true}, 202, &next)
	require.NotEqual(t, op.ID, next.ID)
	require.Len(t, k.engine.told, 1, "a new one needs no hurry")
	rec, err := store.Get[api.Operation](context.Background(), k.kv, system, "", next.ID)
	require.NoError(t, err)
	require.JSONEq(t, `"admin"`, string(rec.Plan.Input))
}

// plans answers every question with what it was asked.
type plans struct{ err error }

func (p plans) say(kind, what string) (*api.DryRun, error) {
	if p.err != nil {
		return nil, p.err
	}
	return &api.DryRun{Kind: kind, Decision: &api.Decision{Name: what}}, nil
}

func (p plans) PlanVMCreate(_ context.Context, h auth.Handle, o admission.Options, r api.VMCreate) (*api.DryRun, error) {
	return p.say(api.OpVMCreate, o.Project+" "+r.Name+" "+h.Who().Name)
}

func (p plans) PlanMigrate(_ context.Context, h auth.Handle, o admission.Options, ref string, r api.VMMigrate) (*api.DryRun, error) {
	return p.say(api.OpVMMigrate, o.Project+" "+ref+" "+r.To+" "+h.Who().Name)
}

func (p plans) PlanMigrateVolume(_ context.Context, h auth.Handle, o admission.Options, ref string, r api.VolumeMigrate) (*api.DryRun, error) {
	return p.say(api.OpVolumeMigrate, o.Project+" "+ref+" "+r.Pool+" "+h.Who().Name)
}

func (p plans) PlanDrain(_ context.Context, h auth.Handle, _ admission.Options, ref string, r api.HostDrain) (*api.DryRun, error) {
	return p.say(api.OpHostDrain, ref+" "+r.Reason+" "+h.Who().Name)
}

func (p plans) PlanBalance(_ context.Context, h auth.Handle, _ admission.Options, _ api.HostBalance) (*api.DryRun, error) {
	return p.say(api.OpHostBalance, h.Who().Name)
}

func TestADryRunDoesNothing(t *testing.T) {
	k := newKit(t, func(o *Options) { o.Planner = plans{} })
	a := k.host("node-a", api.PhaseReady)
	k.landed("web", a, true)
	create := api.VMCreate{Name: "new", VCPUs: 1, Memory: 64 * api.MiB, Image: "tiny"}
	requests := []struct {
		path, want string
		body       any
	}{
		{"/v1/projects/default/vms?dryRun=true", "default new admin", create},
		{"/v1/projects/default/vms/web/migrate?dryRun=true", "default web node-b admin", api.VMMigrate{To: "node-b"}},
		{"/v1/projects/default/volumes/data/migrate?dryRun=true", "default data fast admin", api.VolumeMigrate{Pool: "fast"}},
		{"/v1/agents/node-a/drain?dryRun=true", "node-a disks admin", api.HostDrain{Reason: "disks"}},
		{"/v1/agents/balance?dryRun=true", "admin", nil},
	}
	_, before, err := k.kv.List(context.Background(), store.Root)
	require.NoError(t, err)
	for _, r := range requests {
		var d api.DryRun
		reply := k.call(k.admin, http.MethodPost, r.path, r.body, 200, &d)
		require.Equal(t, r.want, d.Decision.Name)
		require.Empty(t, reply.Header.Get("Location"))
	}
	create.VCPUs = 0
	k.call(k.admin, http.MethodPost, "/v1/projects/default/vms?dryRun=true", create, 422, nil)
	k.call(k.admin, http.MethodPost, "/v1/projects/nosuch/vms/web/migrate?dryRun=true", nil, 404, nil)
	k.call(k.admin, http.MethodPost, "/v1/projects/default/volumes/data/migrate?dryRun=true", api.VolumeMigrate{}, 422, nil)
	k.call(k.admin, http.MethodPost, "/v1/agents/node-a/drain?dryRun=maybe", nil, 422, nil)
	_, after, err := k.kv.List(context.Background(), store.Root)
	require.NoError(t, err)
	require.Equal(t, before, after, "nothing was written")

	without := newKit(t)
	without.host("node-a", api.PhaseReady)
	d := without.call(without.admin, http.MethodPost, "/v1/agents/node-a/drain?dryRun=true", nil, 501, nil).problem(t)
	require.Equal(t, problem.Unsupported, d.Code)
	bad := newKit(t, func(o *Options) { o.Planner = plans{problem.New(problem.NotFound, "no such thing").Try("look")} })
	bad.call(bad.admin, http.MethodPost, "/v1/agents/balance?dryRun=true", nil, 404, nil)
}

func TestVMsMoveAndChange(t *testing.T) {
	k := newKit(t)
	a, b := k.host("node-a", api.PhaseReady), k.host("node-b", api.PhaseReady)
	k.landed("web", a, true)
	k.landed("local", a, false)
	var op api.Operation
	k.call(k.admin, http.MethodPost, "/v1/projects/default/vms/web/migrate", api.VMMigrate{To: b.Name}, 202, &op)
	require.Equal(t, api.OpVMMigrate, op.Kind)
	var vm api.VM
	k.call(k.admin, http.MethodGet, "/v1/projects/default/vms/web", nil, 200, &vm)
	require.Equal(t, api.PhaseMigrating, vm.Status.Phase)
	k.settle(op.ID, api.OpCancelled)
	k.call(k.admin, http.MethodPost, "/v1/projects/default/vms/web/migrate", nil, 202, &op)
	k.settle(op.ID, api.OpSucceeded)
	k.call(k.admin, http.MethodPost, "/v1/projects/default/vms/local/migrate", nil, 409, nil)
	k.call(k.admin, http.MethodPost, "/v1/projects/default/vms/local/migrate", api.VMMigrate{CopyStorage: true}, 202, nil)
	k.call(k.admin, http.MethodPost, "/v1/projects/default/vms/web/migrate", api.VMMigrate{Timeout: -1}, 422, nil)

	k.call(k.admin, http.MethodPatch, "/v1/projects/default/vms/web", `{"ha":true,"labels":{"a":"b"}}`, 202, &op)
	k.settle(op.ID, api.OpSucceeded)
	k.call(k.admin, http.MethodGet, "/v1/projects/default/vms/web", nil, 200, &vm)
	require.True(t, vm.Spec.HA)

	var group api.VMGroup
	k.call(k.admin, http.MethodPost, "/v1/projects/default/vm-groups", `{"name":"apart","policy":"anti-affinity","soft":true}`, 202, &op)
	k.settle(op.ID, api.OpSucceeded)
	k.call(k.admin, http.MethodGet, "/v1/projects/default/vm-groups/apart", nil, 200, &group)
	require.Equal(t, api.VMGroupSpec{Policy: api.AntiAffinity, Soft: true}, group.Spec)
	var list struct{ Items []api.VMGroup }
	k.call(k.admin, http.MethodGet, "/v1/projects/default/vm-groups", nil, 200, &list)
	require.Len(t, list.Items, 1)
	k.call(k.admin, http.MethodPatch, "/v1/projects/default/vms/web", `{"group":"apart"}`, 202, &op)
	k.settle(op.ID, api.OpSucceeded)
	k.call(k.admin, http.MethodDelete, "/v1/projects/default/vm-groups/apart", nil, 409, nil)
	k.call(k.admin, http.MethodPatch, "/v1/projects/default/vms/web", `{"group":""}`, 202, &op)
	k.settle(op.ID, api.OpSucceeded)
	k.call(k.admin, http.MethodDelete, "/v1/projects/default/vm-groups/apart", nil, 202, nil)
	k.call(k.admin, http.MethodPost, "/v1/projects/default/vm-groups", `{"name":"odd","policy":"sometimes"}`, 422, nil)
}

func TestOperationsTellTheirProgressAndTheirChildren(t *testing.T) {
	k := newKit(t)
	a := k.host("node-a", api.PhaseReady)
	k.landed("web", a, true)
	o := admission.Options{Project: api.DefaultProject, Parent: api.NewID()}
	op, err := k.admission.MigrateVM(context.Background(), system, o, "web", api.VMMigrate{})
	require.NoError(t, err)
	path := "/v1/operations/" + op.ID
	asked := 0
	say := &api.Progress{Step: "compute.migrate", Done: 1, Total: 2, Migrate: &api.MoveProgress{Remaining: 1}}
	k.engine.progress = func(_ context.Context, id string) (*api.Progress, error) {
		asked++
		require.Equal(t, op.ID, id)
		return say, nil
	}
	var got api.Operation
	k.call(k.admin, http.MethodGet, path, nil, 200, &got)
	require.Nil(t, got.Progress, "it has not begun")
	require.Zero(t, asked)
	require.NoError(t, k.admission.Record(context.Background(), system, admission.Outcome{Operation: op.ID, State: api.OpRunning}, nil))
	k.call(k.admin, http.MethodGet, path, nil, 200, &got)
	require.Equal(t, say, got.Progress)

	k.engine.progress = func(context.Context, string) (*api.Progress, error) { return nil, errors.New("away") }
	got = api.Operation{}
	k.call(k.admin, http.MethodGet, path, nil, 200, &got)
	require.Nil(t, got.Progress)
	k.engine.progress = func(ctx context.Context, _ string) (*api.Progress, error) { <-ctx.Done(); return nil, ctx.Err() }
	begun := time.Now()
	k.call(k.admin, http.MethodGet, path, nil, 200, nil)
	require.Less(t, time.Since(begun), 10*progressTime, "an engine that hangs holds nobody up for long")

	k.settle(op.ID, api.OpSucceeded)
	k.engine.progress = func(context.Context, string) (*api.Progress, error) { t.Error("it has ended"); return nil, nil }
	k.call(k.admin, http.MethodGet, path, nil, 200, nil)

	var list struct{ Items []api.Operation }
	k.server.told(got.Revision)
	k.call(k.admin, http.MethodGet, "/v1/operations?parent="+o.Parent, nil, 200, &list)
	require.Len(t, list.Items, 1)
	require.Equal(t, op.ID, list.Items[0].ID)
	k.call(k.admin, http.MethodGet, "/v1/operations?parent="+api.NewID(), nil, 200, &list)
	require.Empty(t, list.Items)
}

func TestOperationsComeNewestFirst(t *testing.T) {
	k := newKit(t)
	begun := time.Now().UTC().Add(-time.Hour)
	const n = 25
	var ops []api.Resource
	for i := range n {
		ops = append(ops, &api.Operation{
			Meta: api.Meta{ID: api.NewID(), Created: begun.Add(time.Duration(i/2) * time.Second)}, Kind: api.OpNoop, State: api.OpSucceeded, // two at each moment
		})
	}
	k.put(ops...)
	var seen []*api.Operation
	token := ""
	for page := 0; ; page++ {
		var list struct {
			Items         []*api.Operation
			NextPageToken string
		}
		k.call(k.admin, http.MethodGet, "/v1/operations?kind=noop&page_size=4&page_token="+token, nil, 200, &list)
		seen = append(seen, list.Items...)
		require.LessOrEqual(t, len(list.Items), 4)
		if token = list.NextPageToken; token == "" {
			break
		}
		// What is accepted meanwhile is newer than all that is still to come.
		k.put(&api.Operation{Meta: api.Meta{ID: api.NewID(), Created: time.Now().UTC()}, Kind: api.OpNoop, State: api.OpAccepted})
	}
	require.Len(t, seen, n)
	ids := map[string]bool{}
	for i, op := range seen {
		require.False(t, ids[op.ID])
		ids[op.ID] = true
		if i > 0 {
			require.False(t, op.Created.After(seen[i-1].Created))
		}
	}
}

func TestAHostShowsItsLastSignOfLife(t *testing.T) {
	k := newKit(t)
	joined := k.join("node-a")
	report := api.AgentReport{Sent: k.now(), Inventory: api.Inventory{Cores: 4, Memory: api.GiB}}
	k.call(joined.Credential, http.MethodPost, "/v1/agents/"+joined.ID+"/report", report, 200, nil)
	k.pass(5 * time.Second)
	report.Sent = k.now()
	k.call(joined.Credential, http.MethodPost, "/v1/agents/"+joined.ID+"/report", report, 200, nil)
	var one api.Agent
	k.call(k.admin, http.MethodGet, "/v1/agents/node-a", nil, 200, &one)
	require.WithinDuration(t, k.now(), one.Status.Observed, 3*time.Second)
}

// TestAgentsOfOtherVersions: a cloud is upgraded machine by machine.
func TestAgentsOfOtherVersions(t *testing.T) {
	k := newKit(t)
	var joined api.AgentJoined
	k.call("", http.MethodPost, "/v1/agents/join", json.RawMessage(`{"name":"node-a","token":"`+joinToken+`","region":"north"}`), 200, &joined)
	path := "/v1/agents/" + joined.ID + "/report"
	report := func(rest string) json.RawMessage {
		return json.RawMessage(`{"sent":` + strconv.Quote(k.now().Format(time.RFC3339Nano)) + `,` + rest + `}`)
	}
	t.Run("newer", func(t *testing.T) {
		k.call(joined.Credential, http.MethodPost, path, report(`"vms":[{"id":"`+api.NewID()+`","phase":"running","mood":"good"}],"weather":{"wind":3},
			"inventory":{"hostname":"a","arch":"x86_64","accel":"kvm","machine":"q35","emulator":"/usr/bin/qemu","cpuModel":"host","cores":4,"memory":1073741824,
			"tpm":[2],"peer":{"address":"10.0.0.1","rdma":"10.0.0.2"},"numa":[{"id":0,"memory":1,"cpus":[0],"distance":[10]}],
			"hugePages":[{"size":1,"total":1,"free":1,"reserved":1}],"nics":[{"name":"eth0","up":true,"vlans":[1]}],
			"devices":[{"address":"0000:01:00.0","class":"0x030000","vendor":"a","product":"b","iommu":7}],
			"pools":[{"pool":"`+api.NewID()+`","capacity":2,"free":1,"iops":9}]}`), 200, nil)
	})
	t.Run("older", func(t *testing.T) { // it has none of what came since
		k.call(joined.Credential, http.MethodPost, path, report(`"vms":[],"inventory":{"hostname":"a","arch":"x86_64","accel":"kvm","machine":"q35",
			"emulator":"/usr/bin/qemu","cpuModel":"host","cores":4,"memory":1073741824}`), 200, nil)
	})
	t.Run("wrong", func(t *testing.T) { // what is known is checked as ever
		k.call(joined.Credential, http.MethodPost, path, report(`"vms":[],"inventory":{"hostname":7}`), 422, nil)
	})
	t.Run("users are told of their mistakes", func(t *testing.T) {
		k.call(k.admin, http.MethodPatch, "/v1/agents/node-a", json.RawMessage(`{"cordonned":true}`), 422, nil)
	})
	var one api.Agent
	k.call(k.admin, http.MethodGet, "/v1/agents/node-a", nil, 200, &one)
	require.Equal(t, 4, one.Status.Inventory.Cores)
}
