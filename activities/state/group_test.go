package state_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/test/fault"
	"github.com/nextstack/nextstack/workflows/steps"
)

// grouped is a cloud with a group that its VM web1 does not belong to.
func grouped(t *testing.T, policy string) *cloud {
	c := newCloud(t, true)
	_, err := c.Do(ctx, func(ctx context.Context, w *fault.World, h auth.Handle) (*api.Operation, error) {
		return w.Admission.CreateGroup(ctx, h, opts, api.VMGroupCreate{Name: "g", VMGroupSpec: api.VMGroupSpec{Policy: policy}})
	})
	require.NoError(t, err)
	return c
}

// member accepts a VM of the group, for one node or any, and returns what its first step is called with.
func (c *cloud) member(name, node string) (steps.Token, steps.VMRef) {
	c.Helper()
	op, err := c.Admission.CreateVM(ctx, c.User, opts, api.VMCreate{
		Name: name, VCPUs: 1, Memory: api.GiB, Image: "cirros", Pool: "vms", Placing: api.Placing{Group: "g", NodeID: node},
	})
	require.NoError(c, err)
	return steps.Token{Operation: op.ID}, steps.VMRef{Project: opts.Project, VM: op.Target.ID}
}

func (c *cloud) join(group string) (*api.Operation, error) {
	return c.Admission.UpdateVM(ctx, c.User, opts, "web1", api.VMUpdate{Group: &group})
}

// TestAVMThatComesIntoAGroupCountsForTheOthersAtOnce: while its update runs, when that has ended, and no more when it has left.
func TestAVMThatComesIntoAGroupCountsForTheOthersAtOnce(t *testing.T) {
	for policy, where := range map[string]func(c *cloud) *fault.Node{
		api.AntiAffinity: func(c *cloud) *fault.Node { return c.over },
		api.Affinity:     func(c *cloud) *fault.Node { return c.here },
	} {
		t.Run(policy, func(t *testing.T) {
			c := grouped(t, policy)
			place := func(name string) string {
				tok, ref := c.member(name, "")
				out, err := call(c.c, steps.PlaceVM, tok, steps.VMOrder{VMRef: ref})
				require.NoError(t, err)
				_, err = call(c.c, steps.UnplaceVM, tok, ref) // it goes again
				require.NoError(t, err)
				require.NoError(t, c.Admission.Settle(ctx, c.User, admission.Outcome{Operation: tok.Operation, State: api.OpFailed}))
				return out.Plan.AgentName
			}
			op, err := c.join("g")
			require.NoError(t, err)
			require.Equal(t, where(c).Name, place("during"))
			require.NoError(t, c.Admission.Settle(ctx, c.User, admission.Outcome{Operation: op.ID, State: api.OpSucceeded}))
			require.Equal(t, where(c).Name, place("after"))
			findings, err := c.Audit(ctx)
			require.NoError(t, err)
			for _, f := range findings {
				require.NotEqual(t, "claim", f.Kind, "%s", f.Problem)
			}
		})
	}
}

// TestARuleHoldsWhenAVMComesIntoAGroupWhileAnotherIsPlaced: of two that do not go together one is refused, whoever is faster.
func TestARuleHoldsWhenAVMComesIntoAGroupWhileAnotherIsPlaced(t *testing.T) {
	won := map[string]int{}
	for policy, where := range map[string]func(c *cloud) *fault.Node{
		api.AntiAffinity: func(c *cloud) *fault.Node { return c.here },
		api.Affinity:     func(c *cloud) *fault.Node { return c.over },
	} {
		for range 20 {
			c := grouped(t, policy)
			tok, ref := c.member("other", where(c).Name)
			var joined, placed error
			begin := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() { <-begin; _, joined = c.join("g") })
			wg.Go(func() { <-begin; _, placed = call(c.c, steps.PlaceVM, tok, steps.VMOrder{VMRef: ref}) })
			close(begin)
			wg.Wait()
			switch {
			case joined == nil && placed != nil:
				require.Equal(t, problem.NoCapacity, problem.KindOf(placed), "%v", placed)
				won["who joins"]++
			case placed == nil && joined != nil:
				require.Equal(t, problem.Conflict, problem.KindOf(joined), "%v", joined)
				won["who is placed"]++
			default:
				require.Fail(t, "both or none", fmt.Sprintf("%s: joined: %v, placed: %v", policy, joined, placed))
			}
		}
	}
	t.Log(won)
}
