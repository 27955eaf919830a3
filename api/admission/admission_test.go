package admission_test

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/test/fault"
)

var ctx = context.Background()

// desk is where requests are sent to; no workflow runs, so operations end when a test settles them.
type desk struct {
	*testing.T
	*fault.World
}

func newDesk(t *testing.T) *desk {
	w, err := fault.NewWorld(ctx, nil)
	require.NoError(t, err)
	return &desk{t, w}
}

var opts = admission.Options{Project: api.DefaultProject}

// ask makes request return an operation.
func (d *desk) ask(op *api.Operation, err error) *api.Operation {
	d.Helper()
	require.NoError(d, err)
	require.Equal(d, api.OpAccepted, op.State)
	return op
}

// settle ends an operation as its workflow would.
func (d *desk) settle(op *api.Operation, state api.OperationState) {
	d.Helper()
	out := admission.Outcome{Operation: op.ID, State: state}
	if op.Kind == api.OpImageImport {
		out.Result = []byte(`{"sha256":"ab","size":1000,"virtualSize":1073741824}`)
	}
	if op.Kind == api.OpCheckpointCreate {
		out.Result = []byte(`{"memory":1048576,"pause":5}`)
	}
	if op.Kind == api.OpSnapshotCreate {
		out.Result = []byte(`{"frozen":true,"pause":1000}`)
	}
	if state != api.OpSucceeded {
		out.Error = problem.New(problem.Internal, "it was not to be")
	}
	require.NoError(d, d.Admission.Settle(ctx, d.User, out))
}

func (d *desk) done(op *api.Operation, err error) *api.Operation {
	d.Helper()
	d.ask(op, err)
	d.settle(op, api.OpSucceeded)
	return op
}

// refuse wants a problem of this kind, with something that its reader can do.
func (d *desk) refuse(kind problem.Kind, op *api.Operation, err error) *problem.Problem {
	d.Helper()
	require.Error(d, err)
	require.Nil(d, op)
	p := problem.From(err)
	require.Equal(d, kind, p.Kind, "%v", p)
	return p
}

// clean wants every claim to have its record, every record its claims, and no lock without its operation.
func (d *desk) clean() {
	d.Helper()
	findings, err := d.Audit(ctx)
	require.NoError(d, err)
	for _, f := range findings {
		if f.Side == "store" {
			d.Errorf("%s", f.Problem)
		}
	}
}

// cloud makes a pool, an image, a VPC, a subnet and a security group.
func (d *desk) cloud() *desk {
	d.Helper()
	a, h := d.Admission, d.User
	d.done(a.CreatePool(ctx, h, opts, api.PoolCreate{Name: "vms", Type: api.PoolDir, Path: "/vms"}))
	d.done(a.CreateImage(ctx, h, opts, api.ImageCreate{Name: "cirros", Format: api.FormatQCOW2, Path: "/images/cirros"}))
	d.done(a.CreateVPC(ctx, h, opts, api.VPCCreate{Name: "net", CIDR: "10.0.0.0/16"}))
	d.done(a.CreateSubnet(ctx, h, opts, api.SubnetCreate{Name: "front", VPC: "net", CIDR: "10.0.1.0/24"}))
	d.done(a.CreateSecurityGroup(ctx, h, opts, api.SecurityGroupCreate{Name: "web"}))
	d.done(a.CreateGroup(ctx, h, opts, api.VMGroupCreate{Name: "pack", VMGroupSpec: api.VMGroupSpec{Policy: api.AntiAffinity}}))
	return d
}

func vmRequest(name string) api.VMCreate {
	return api.VMCreate{
		Name: name, VCPUs: 1, Memory: 64 * api.MiB, Image: "cirros", SecurityGroups: []string{"web"}, UserData: "#!/bin/sh\n",
		NICs: []api.NICRequest{{Subnet: "front"}},
	}
}

func find[T any, P interface {
	*T
	api.Resource
}](d *desk, project, name string) *T {
	d.Helper()
	r, err := store.Find[T, P](ctx, d.KV, d.User, project, name)
	require.NoError(d, err)
	return r
}

func missing[T any, P interface {
	*T
	api.Resource
}](d *desk, project, name string) {
	d.Helper()
	_, err := store.Find[T, P](ctx, d.KV, d.User, project, name)
	require.True(d, problem.Is(err, problem.NotFound), "%v", err)
}

func TestTheSameKeyIsTheSameOperation(t *testing.T) {
	d := newDesk(t)
	o := opts
	o.IdempotencyKey = "k1"
	req := api.VPCCreate{Name: "net", CIDR: "10.0.0.0/16"}
	first := d.ask(d.Admission.CreateVPC(ctx, d.User, o, req))
	again := d.ask(d.Admission.CreateVPC(ctx, d.User, o, req))
	require.Equal(t, first.ID, again.ID)

	d.settle(first, api.OpSucceeded)
	ended, err := d.Admission.CreateVPC(ctx, d.User, o, req)
	require.NoError(t, err)
	require.Equal(t, first.ID, ended.ID)
	require.Equal(t, api.OpSucceeded, ended.State)

	other := req
	other.CIDR = "10.1.0.0/16"
	op, err := d.Admission.CreateVPC(ctx, d.User, o, other)
	_ = d.refuse(problem.Mismatch, op, err)
	op, err = d.Admission.DeleteVPC(ctx, d.User, o, "net")
	_ = d.refuse(problem.Mismatch, op, err)
	d.clean()
}

func TestTheSameKeyAtTheSameMomentIsOneOperation(t *testing.T) {
	for range 20 {
		d := newDesk(t)
		o := opts
		o.IdempotencyKey = "k"
		ids := race(20, func(int) string {
			op, err := d.Admission.CreateVPC(ctx, d.User, o, api.VPCCreate{Name: "net", CIDR: "10.0.0.0/16"})
			if err != nil {
				return err.Error()
			}
			return op.ID
		})
		for _, id := range ids {
			require.Equal(t, ids[0], id)
		}
		ops, err := store.List[api.Operation](ctx, d.KV, d.User, "")
		require.NoError(t, err)
		require.Len(t, ops, 1)
		d.clean()
	}
}

func TestTheSameKeyAtTheSameMomentForADelete(t *testing.T) {
	d := newDesk(t)
	d.done(d.Admission.CreateVPC(ctx, d.User, opts, api.VPCCreate{Name: "net", CIDR: "10.0.0.0/16"}))
	o := opts
	o.IdempotencyKey = "k"
	ids := race(20, func(int) string {
		op, err := d.Admission.DeleteVPC(ctx, d.User, o, "net")
		if err != nil {
			return err.Error()
		}
		return op.ID
	})
	for _, id := range ids {
		require.Equal(t, ids[0], id)
	}
}

// race runs n calls at the same moment and returns their answers.
func race[T any](n int, call func(i int) T) []T {
	out := make([]T, n)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			out[i] = call(i)
		})
	}
	close(start)
	wg.Wait()
	return out
}

func TestOfTwoWhoWantAnameOneGetsIt(t *testing.T) {
	d := newDesk(t)
	for i := range 50 {
		name := "net-" + string(rune('a'+i%26)) + string(rune('a'+i/26))
		errs := race(2, func(int) error {
			_, err := d.Admission.CreateVPC(ctx, d.User, opts, api.VPCCreate{Name: name, CIDR: "10.0.0.0/16"})
			return err
		})
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
				continue
			}
			require.True(t, problem.Is(err, problem.Conflict), "%v", err)
			require.Contains(t, err.Error(), "taken")
		}
		require.Equal(t, 1, won)
	}
}

func TestAChangedTargetIsNotOverwritten(t *testing.T) {
	d := newDesk(t)
	d.done(d.Admission.CreateVPC(ctx, d.User, opts, api.VPCCreate{Name: "net", CIDR: "10.0.0.0/16"}))
	o := opts
	o.IfMatch = find[api.VPC](d, opts.Project, "net").Revision
	labels := map[string]string{"a": "b"}
	d.done(d.Admission.UpdateVPC(ctx, d.User, o, "net", api.VPCUpdate{Labels: &labels}))
	require.Equal(t, labels, find[api.VPC](d, opts.Project, "net").Labels)

	op, err := d.Admission.UpdateVPC(ctx, d.User, o, "net", api.VPCUpdate{Labels: &map[string]string{}})
	_ = d.refuse(problem.Precondition, op, err)
	op, err = d.Admission.DeleteVPC(ctx, d.User, o, "net")
	_ = d.refuse(problem.Precondition, op, err)
	d.clean()
}

func TestALockedTargetNamesWhoHoldsIt(t *testing.T) {
	d := newDesk(t).cloud()
	d.done(d.Admission.CreateVM(ctx, d.User, opts, vmRequest("web1")))
	held := d.ask(d.Admission.StopVM(ctx, d.User, opts, "web1", api.VMStop{}))
	for name, call := range map[string]func() (*api.Operation, error){
		"start":  func() (*api.Operation, error) { return d.Admission.StartVM(ctx, d.User, opts, "web1") },
		"stop":   func() (*api.Operation, error) { return d.Admission.StopVM(ctx, d.User, opts, "web1", api.VMStop{}) },
		"reboot": func() (*api.Operation, error) { return d.Admission.RebootVM(ctx, d.User, opts, "web1", api.VMStop{}) },
		"delete": func() (*api.Operation, error) { return d.Admission.DeleteVM(ctx, d.User, opts, "web1") },
	} {
		op, err := call()
		p := d.refuse(problem.Locked, op, err)
		require.Contains(t, p.Error(), held.ID, name)
		require.NotEmpty(t, p.Fix, name)
	}
	d.settle(held, api.OpSucceeded)
	require.Equal(t, api.PhaseStopped, find[api.VM](d, opts.Project, "web1").Status.Phase)
	d.clean()
}

func TestSettlingTwiceIsSettlingOnce(t *testing.T) {
	d := newDesk(t)
	op := d.done(d.Admission.CreateVPC(ctx, d.User, opts, api.VPCCreate{Name: "net", CIDR: "10.0.0.0/16"}))
	d.settle(op, api.OpFailed)
	require.Equal(t, api.PhaseReady, find[api.VPC](d, opts.Project, "net").Status.Phase)
	require.Equal(t, api.OpSucceeded, find[api.Operation](d, "", op.ID).State)

	op = d.ask(d.Admission.DeleteVPC(ctx, d.User, opts, "net"))
	d.settle(op, api.OpFailed)
	d.settle(op, api.OpSucceeded)
	require.Equal(t, api.PhaseReady, find[api.VPC](d, opts.Project, "net").Status.Phase)
	d.clean()
}

func TestALateSettlingTouchesNoRecordOfOthers(t *testing.T) {
	d := newDesk(t).cloud()
	d.done(d.Admission.CreateVM(ctx, d.User, opts, vmRequest("web1")))
	first := d.ask(d.Admission.StopVM(ctx, d.User, opts, "web1", api.VMStop{}))
	vm := find[api.VM](d, opts.Project, "web1")
	vm.Operation = api.NewID() // as if a person had opened the lock, and another operation had taken it
	draft := store.NewDraft(d.User)
	draft.Update(vm)
	_, err := draft.Commit(ctx, d.KV)
	require.NoError(t, err)
	d.settle(first, api.OpSucceeded)
	after := find[api.VM](d, opts.Project, "web1")
	require.Equal(t, api.PhaseRunning, after.Status.Phase)
	require.Equal(t, vm.Operation, after.Operation)
}

func TestAFailedOperationCanBeRetried(t *testing.T) {
	d := newDesk(t).cloud()
	req := vmRequest("web1")
	req.UserData = ""
	op := d.ask(d.Admission.CreateVM(ctx, d.User, opts, req))
	none, err := d.Admission.Retry(ctx, d.User, admission.Options{}, op.ID)
	_ = d.refuse(problem.Conflict, none, err)
	d.settle(op, api.OpFailed)
	missing[api.VM](d, opts.Project, "web1")

	again := d.ask(d.Admission.Retry(ctx, d.User, admission.Options{}, op.ID))
	require.NotEqual(t, op.ID, again.ID)
	require.Equal(t, op.ID, again.RetryOf)
	twice, err := d.Admission.Retry(ctx, d.User, admission.Options{}, op.ID)
	require.NoError(t, err)
	require.Equal(t, again.ID, twice.ID, "two retries of one failure are one")
	d.settle(again, api.OpSucceeded)
	require.Equal(t, api.PhaseRunning, find[api.VM](d, opts.Project, "web1").Status.Phase)

	secret := d.ask(d.Admission.CreateVM(ctx, d.User, opts, vmRequest("web2")))
	d.settle(secret, api.OpFailed)
	none, err = d.Admission.Retry(ctx, d.User, admission.Options{}, secret.ID)
	_ = d.refuse(problem.Unsupported, none, err)

	for _, kind := range []struct {
		what string
		call func() (*api.Operation, error)
	}{
		{"update", func() (*api.Operation, error) {
			return d.Admission.UpdateSubnet(ctx, d.User, opts, "front", api.SubnetUpdate{DNS: &[]string{"9.9.9.9"}})
		}},
		{"power", func() (*api.Operation, error) {
			return d.Admission.StopVM(ctx, d.User, opts, "web1", api.VMStop{Timeout: 5})
		}},
		{"delete", func() (*api.Operation, error) { return d.Admission.DeleteVM(ctx, d.User, opts, "web1") }},
	} {
		failed := d.ask(kind.call())
		d.settle(failed, api.OpCancelled)
		retried := d.ask(d.Admission.Retry(ctx, d.User, admission.Options{}, failed.ID))
		require.Equal(t, failed.Kind, retried.Kind, kind.what)
		require.JSONEq(t, string(failed.Request), string(retried.Request), kind.what)
		d.settle(retried, api.OpSucceeded)
	}
	missing[api.VM](d, opts.Project, "web1")
	require.Equal(t, []string{"9.9.9.9"}, find[api.Subnet](d, opts.Project, "front").Spec.DNS)
	d.clean()
}

func TestARetryIsAboutTheSameThing(t *testing.T) {
	d := newDesk(t).cloud()
	req := vmRequest("web1")
	d.done(d.Admission.CreateVM(ctx, d.User, opts, req))
	failed := d.ask(d.Admission.DeleteVM(ctx, d.User, opts, "web1"))
	d.settle(failed, api.OpFailed)
	d.done(d.Admission.DeleteVM(ctx, d.User, opts, "web1"))
	d.done(d.Admission.CreateVM(ctx, d.User, opts, req))

	none, err := d.Admission.Retry(ctx, d.User, admission.Options{}, failed.ID)
	_ = d.refuse(problem.Conflict, none, err)
	require.Equal(t, api.PhaseRunning, find[api.VM](d, opts.Project, "web1").Status.Phase, "the new one has nothing to do with the old request")
}
