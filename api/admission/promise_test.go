package admission_test

import (
	"encoding/json"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// group adds a VM group and returns its ID.
func (d *desk) group(name, policy string, soft bool) string {
	d.Helper()
	d.done(d.Admission.CreateGroup(ctx, d.User, opts, api.VMGroupCreate{Name: name, VMGroupSpec: api.VMGroupSpec{Policy: policy, Soft: soft}}))
	return find[api.VMGroup](d, opts.Project, name).ID
}

// promised returns what a VM's node has promised to it, as it is written, and the revision of the node's ledger.
func (d *desk) promised(vm *api.VM) (p admission.Promise, raw string, ledger int64) {
	d.Helper()
	e, err := d.KV.Get(ctx, store.NodeClaim(vm.Status.Agent, vm.ID))
	require.NoError(d, err)
	require.NoError(d, json.Unmarshal(e.Value, &p))
	ledger, err = store.LedgerRevision(ctx, d.KV, store.NodePrefix(vm.Status.Agent))
	require.NoError(d, err)
	return p, string(e.Value), ledger
}

func (d *desk) join(vm, group string) (*api.Operation, error) {
	return d.Admission.UpdateVM(ctx, d.User, opts, vm, api.VMUpdate{Group: &group})
}

// TestAVMCountsForItsNewGroupAtOnceAndForItsOldOneUntilItHasLeft: whatever becomes of the update, nobody has decided on a group
// that was not so.
func TestAVMCountsForItsNewGroupAtOnceAndForItsOldOneUntilItHasLeft(t *testing.T) {
	d := newDesk(t).cloud().shared()
	one, two := d.group("one", api.AntiAffinity, false), d.group("two", api.Affinity, false)
	vm := d.vm("web1", "a1", nil)
	size := api.Amount{VCPUs: vm.Spec.VCPUs, Memory: vm.Spec.Memory}
	for _, c := range []struct {
		to                    string
		before, during, after admission.Promise
	}{
		{"one", admission.Promise{Amount: size}, admission.Promise{Amount: size, Joins: one}, admission.Promise{Amount: size, Group: one}},
		{"two", admission.Promise{Amount: size, Group: one}, admission.Promise{Amount: size, Group: one, Joins: two}, admission.Promise{Amount: size, Group: two}},
		{"", admission.Promise{Amount: size, Group: two}, admission.Promise{Amount: size, Group: two}, admission.Promise{Amount: size}},
	} {
		before, raw, ledger := d.promised(vm)
		require.Equal(t, c.before, before)
		for _, end := range []api.OperationState{api.OpFailed, api.OpCancelled, api.OpSucceeded} {
			op := d.ask(d.join("web1", c.to))
			during, _, touched := d.promised(vm)
			require.Equal(t, c.during, during)
			require.Greater(t, touched, ledger, "who has decided on what was there before decides again")
			d.clean()
			d.settle(op, end)
			after, again, last := d.promised(vm)
			require.Greater(t, last, touched)
			if ledger = last; end == api.OpSucceeded {
				require.Equal(t, c.after, after)
			} else {
				require.Equal(t, raw, again)
			}
			d.clean()
		}
	}
	d.done(d.join("web1", "one"))
	_, _, ledger := d.promised(vm)
	d.done(d.join("web1", "one"))
	_, _, same := d.promised(vm)
	require.Equal(t, ledger, same, "it is there already")
}

// TestAVMComesIntoAGroupOnlyWhereItsRuleWouldHaveIt: web1 is on a1, other on one of two nodes.
func TestAVMComesIntoAGroupOnlyWhereItsRuleWouldHaveIt(t *testing.T) {
	for name, c := range map[string]struct {
		policy string
		soft   bool
		other  string // node
		meddle func(d *desk, a1 string)
		why    string // it is refused so; empty: it is not
	}{
		"apart, elsewhere":    {policy: api.AntiAffinity, other: "a2"},
		"apart, here":         {policy: api.AntiAffinity, other: "a1", why: "vm other is on node a1, too"},
		"softly apart, here":  {policy: api.AntiAffinity, soft: true, other: "a1"},
		"together, here":      {policy: api.Affinity, other: "a1"},
		"together, elsewhere": {policy: api.Affinity, other: "a2", why: "vm other is on node a2"},
		"softly together":     {policy: api.Affinity, soft: true, other: "a2"},
		"apart, on its way here": {policy: api.AntiAffinity, other: "a2", why: "on node a1, too", meddle: func(d *desk, a1 string) {
			change(d, opts.Project, "other", func(vm *api.VM) { vm.Status.MovingTo = a1 })
		}},
		"together, on its way": {policy: api.Affinity, other: "a2", why: "is being moved", meddle: func(d *desk, a1 string) {
			change(d, opts.Project, "other", func(vm *api.VM) { vm.Status.MovingTo = a1 })
		}},
		"together, with the dead": {policy: api.Affinity, other: "a2", meddle: func(d *desk, _ string) { d.silence("a2", api.PhaseDown) }},
		"together, with those that may be dead": {policy: api.Affinity, other: "a2", why: "vm other is on node a2", meddle: func(d *desk, _ string) {
			d.silence("a2", api.PhaseSuspect)
		}},
		"with who is on no node yet": {policy: api.AntiAffinity, other: "a1", meddle: func(d *desk, _ string) {
			change(d, opts.Project, "other", func(vm *api.VM) { vm.Status.Agent, vm.Status.AgentName = "", "" })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t).cloud().shared()
			d.group("g", c.policy, c.soft)
			vm := d.vm("web1", "a1", nil)
			d.vm("other", c.other, func(r *api.VMCreate) { r.Group = "g" })
			if c.meddle != nil {
				c.meddle(d, vm.Status.Agent)
			}
			_, before, _ := d.promised(vm)
			op, err := d.join("web1", "g")
			if c.why == "" {
				d.done(op, err)
				return
			}
			p := d.refuse(problem.Conflict, op, err)
			require.Contains(t, p.Why, c.why)
			require.NotEmpty(t, p.Fix)
			_, after, _ := d.promised(vm)
			require.Equal(t, before, after)
		})
	}
}

// TestOfTwoOnOneNodeThatComeIntoAGroupAtOnceOneDoes, if the group's VMs must be kept apart; and of two on two nodes, if they must
// stay together.
func TestOfTwoOnOneNodeThatComeIntoAGroupAtOnceOneDoes(t *testing.T) {
	for policy, node := range map[string]string{api.AntiAffinity: "a1", api.Affinity: "a2"} {
		for range 10 {
			d := newDesk(t).cloud().shared()
			d.group("g", policy, false)
			d.vm("web1", "a1", nil)
			d.vm("web2", node, nil)
			var ops [2]*api.Operation
			var errs [2]error
			begin := make(chan struct{})
			var wg sync.WaitGroup
			for i, name := range []string{"web1", "web2"} {
				wg.Go(func() {
					<-begin
					ops[i], errs[i] = d.join(name, "g")
				})
			}
			close(begin)
			wg.Wait()
			in, out := 0, 1
			if errs[0] != nil {
				in, out = 1, 0
			}
			_ = d.refuse(problem.Conflict, ops[out], errs[out])
			d.done(ops[in], errs[in])
		}
	}
}
