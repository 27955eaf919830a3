package network

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

func call[In, Out any](t *testing.T, env *testsuite.TestActivityEnvironment, step steps.Step[In, Out], in In) (out Out, err error) {
	t.Helper()
	v, err := env.ExecuteActivity(step.Name, steps.Envelope[In]{In: in})
	if err != nil {
		return out, steps.FromActivity(step.Name, "", err)
	}
	require.NoError(t, v.Get(&out))
	return out, nil
}

func TestRegister(t *testing.T) {
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestActivityEnvironment()
	f := NewFake()
	Register(env, &activities.Host{Log: slog.New(slog.DiscardHandler)}, f)
	ctx := testContext(t)
	w := aWorld()
	ok := func(err error) { t.Helper(); require.NoError(t, err) }
	_, err := call(t, env, steps.WireVPC, w.vpc)
	ok(err)
	for _, s := range w.subnets {
		_, err = call(t, env, steps.WireSubnet, s)
		ok(err)
	}
	_, err = call(t, env, steps.WirePorts, w.ports)
	require.True(t, problem.Is(err, problem.NotFound), "%v", err)
	for _, g := range w.groups {
		_, err = call(t, env, steps.WireSecurityGroup, g)
		ok(err)
	}
	_, err = call(t, env, steps.WirePorts, w.ports)
	ok(err)
	settled(ctx, t, f, w)

	_, err = call(t, env, steps.BindPorts, steps.PortBinding{Ports: []string{uid(31), uid(32)}, Chassis: []string{"a", "b"}})
	ok(err)
	require.Equal(t, [][]string{{"a", "b"}, {"a", "b"}, nil}, bindings(ctx, t, f, uid(31), uid(32), uid(33)))

	findings, err := call(t, env, steps.RepairNetwork, []api.Finding{{Side: "ovn", Kind: KindPort, ID: uid(32), Extra: true}, {Side: "ovs", ID: "tap0", Extra: true}})
	ok(err)
	require.True(t, findings[0].Repaired)
	require.False(t, findings[1].Repaired)
	require.Nil(t, list(ctx, t, f).Find(KindPort, uid(32)))
	f.SetAway(true)
	_, err = call(t, env, steps.RepairNetwork, []api.Finding{{Side: "ovn", Kind: KindPort, ID: uid(31), Extra: true}})
	require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
	f.SetAway(false)

	_, err = call(t, env, steps.UnwirePorts, steps.PortRefs{Ports: []string{uid(31), uid(33)}})
	ok(err)
	for _, s := range w.subnets {
		_, err = call(t, env, steps.UnwireSubnet, steps.ResourceRef{ID: s.Subnet})
		ok(err)
	}
	for _, g := range w.groups {
		_, err = call(t, env, steps.UnwireSecurityGroup, steps.ResourceRef{ID: g.SecurityGroup})
		ok(err)
	}
	_, err = call(t, env, steps.UnwireVPC, steps.ResourceRef{ID: uid(1)})
	ok(err)
	require.Empty(t, list(ctx, t, f).Items)
}
