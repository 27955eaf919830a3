package network

import (
	"context"
	"strings"
	"testing"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// bindings returns what the inventory says that ports are bound to.
func bindings(ctx context.Context, t *testing.T, d Driver, ports ...string) [][]string {
	t.Helper()
	inv := list(ctx, t, d)
	var out [][]string
	for _, id := range ports {
		it := inv.Find(KindPort, id)
		require.NotNil(t, it, id)
		require.Empty(t, it.Defects, id)
		out = append(out, it.Port.Chassis)
	}
	return out
}

func conformBinding(t *testing.T, ctx context.Context, d Driver) {
	w := aWorld()
	w.ports[0].Chassis = []string{"a"} // bound as it is wired
	w.wire(ctx, t, d)
	all := []string{uid(31), uid(32), uid(33)}
	require.Equal(t, [][]string{{"a"}, nil, nil}, bindings(ctx, t, d, all...))

	require.NoError(t, d.BindPorts(ctx, nil, []string{"a"}))
	for range 2 {
		require.NoError(t, d.BindPorts(ctx, []string{uid(31), uid(77), uid(33)}, []string{"a", "b"}), "one that is not wired is left out")
	}
	require.Equal(t, [][]string{{"a", "b"}, nil, {"a", "b"}}, bindings(ctx, t, d, all...))
	require.Nil(t, list(ctx, t, d).Find(KindPort, uid(77)))

	// A wiring that names no chassis, as one with other security groups, leaves the binding as it is.
	w.ports[0].Chassis, w.ports[0].SecurityGroups = nil, []string{uid(22)}
	require.NoError(t, d.WirePorts(ctx, w.ports[:1]))
	require.Equal(t, [][]string{{"a", "b"}}, bindings(ctx, t, d, uid(31)))
	settled(ctx, t, d, w)
	w.ports[2].Chassis = []string{"b", "b"}
	require.NoError(t, d.WirePorts(ctx, w.ports[2:]))
	require.Equal(t, [][]string{{"a", "b"}, nil, {"b"}}, bindings(ctx, t, d, all...))
	w.ports[2].Chassis = []string{"c"}
	require.Len(t, compare(w.want(), *list(ctx, t, d)), 1, "it is bound elsewhere than it should be")
	w.ports[2].Chassis = nil

	require.NoError(t, d.BindPorts(ctx, []string{uid(31)}, []string{"b"}))
	require.Equal(t, [][]string{{"b"}}, bindings(ctx, t, d, uid(31)))
	require.NoError(t, d.BindPorts(ctx, all, nil))
	require.Equal(t, [][]string{nil, nil, nil}, bindings(ctx, t, d, all...))
	settled(ctx, t, d, w)

	require.NoError(t, d.BindPorts(ctx, all, []string{"a"}))
	require.NoError(t, d.UnwirePorts(ctx, all))
	require.NoError(t, d.BindPorts(ctx, all, []string{"b"}))
	require.NoError(t, d.WirePorts(ctx, w.ports))
	require.Equal(t, [][]string{nil, nil, nil}, bindings(ctx, t, d, all...), "a new port knows nothing of an old one")

	for name, chassis := range map[string][]string{
		"three": {"a", "b", "c"}, "empty": {""}, "comma": {"a,b"}, "space": {"a b"}, "line": {"a\n"}, "not ASCII": {"ä"}, "long": {strings.Repeat("a", 256)},
	} {
		err := d.BindPorts(ctx, all, chassis)
		assert.True(t, problem.Is(err, problem.Invalid), "%s: %v", name, err)
		w.ports[1].Chassis = chassis
		err = d.WirePorts(ctx, w.ports[1:2])
		assert.True(t, problem.Is(err, problem.Invalid), "%s: %v", name, err)
	}
	require.True(t, problem.Is(d.BindPorts(ctx, []string{"x"}, nil), problem.Invalid))
	require.Equal(t, [][]string{nil, nil, nil}, bindings(ctx, t, d, all...))
}

// conformBindConcurrently: whoever wires a port for another reason does not undo what its move does at the same time.
func conformBindConcurrently(t *testing.T, ctx context.Context, d Driver) {
	w := aWorld()
	w.wire(ctx, t, d)
	all := []string{uid(31), uid(32), uid(33)}
	for range 5 {
		atOnce(t, 10, func(i int) error {
			if i%2 == 0 {
				return d.BindPorts(ctx, all, []string{"a", "b"})
			}
			return d.WirePorts(ctx, w.ports)
		})
		require.Equal(t, [][]string{{"a", "b"}, {"a", "b"}, {"a", "b"}}, bindings(ctx, t, d, all...))
		require.NoError(t, d.BindPorts(ctx, all, nil))
	}
	settled(ctx, t, d, w)
}

func conformMend(t *testing.T, ctx context.Context, d Driver) {
	w := aWorld()
	w.wire(ctx, t, d)
	for kind, id := range map[string]string{KindVPC: uid(1), KindSubnet: uid(11), KindPort: uid(31), KindSecurityGroup: uid(21)} {
		require.NoError(t, d.Mend(ctx, kind, id))
		err := d.Mend(ctx, kind, uid(77))
		require.True(t, problem.Is(err, problem.NotFound), "%v", err)
	}
	settled(ctx, t, d, w)
	require.True(t, problem.Is(d.Mend(ctx, "cow", uid(1)), problem.Invalid))
	require.True(t, problem.Is(d.Mend(ctx, KindPort, "x"), problem.Invalid))

	require.NoError(t, d.UnwireSecurityGroup(ctx, uid(21)))
	require.NotEmpty(t, list(ctx, t, d).Find(KindPort, uid(31)).Defects)
	err := d.Mend(ctx, KindPort, uid(31))
	require.True(t, problem.Is(err, problem.NotFound), "what the port needs is not there: %v", err)
	require.ErrorContains(t, err, uid(21))
	require.NoError(t, d.WireSecurityGroup(ctx, w.groups[0]))
	require.NoError(t, d.Mend(ctx, KindPort, uid(31)))
	settled(ctx, t, d, w)
}

// TestBindPortsWritesOptions: those that OVN reads, and nothing else of the row.
func TestBindPortsWritesOptions(t *testing.T) {
	s, o := newTestOVN(t)
	ctx := testContext(t)
	w := aWorld()
	w.wire(ctx, t, o)
	byHand(t, s.endpoint(), ovsdb.Operation{
		Op: ovsdb.OperationUpdate, Table: "Logical_Switch_Port", Where: []ovsdb.Condition{is(uid(31))},
		Row: ovsdb.Row{"options": toMap(map[string]string{"mcast_flood": "true"}), "enabled": false},
	})
	before := dumpAll(t, o)
	options := func() map[any]any { return dump(t, o, "Logical_Switch_Port")[uid(31)]["options"].(ovsdb.OvsMap).GoMap }
	ports := []string{uid(31)}
	require.NoError(t, o.BindPorts(ctx, ports, []string{"a"}))
	require.Equal(t, map[any]any{"mcast_flood": "true", "requested-chassis": "a"}, options())
	require.NoError(t, o.BindPorts(ctx, ports, []string{"a", "b"}))
	require.Equal(t, map[any]any{"mcast_flood": "true", "requested-chassis": "a,b", "activation-strategy": "rarp"}, options())
	version := func() any { return dump(t, o, "Logical_Switch_Port")[uid(31)]["_version"] }
	seen := version()
	require.NoError(t, o.BindPorts(ctx, ports, []string{"a", "b"}))
	require.Equal(t, seen, version(), "what is right is only looked at")
	require.NoError(t, o.BindPorts(ctx, ports, []string{"b"}))
	require.Equal(t, map[any]any{"mcast_flood": "true", "requested-chassis": "b"}, options())
	require.NoError(t, o.BindPorts(ctx, ports, nil))
	require.Equal(t, before, dumpAll(t, o))

	// The uplink of a subnet has an ID, too, and is no port of a guest.
	require.NoError(t, o.BindPorts(ctx, []string{uplinkRow(uid(11))}, []string{"a"}))
	require.Equal(t, before, dumpAll(t, o))

	// Half a binding, made by hand, is a defect that a wiring without one mends.
	byHand(t, s.endpoint(), ovsdb.Operation{
		Op: ovsdb.OperationUpdate, Table: "Logical_Switch_Port", Where: []ovsdb.Condition{is(uid(32))},
		Row: ovsdb.Row{"options": toMap(map[string]string{"requested-chassis": "a,b"})},
	})
	require.NotEmpty(t, list(ctx, t, o).Find(KindPort, uid(32)).Defects)
	require.NoError(t, o.WirePorts(ctx, []steps.PortWiring{w.ports[1]}))
	require.Equal(t, [][]string{{"a", "b"}}, bindings(ctx, t, o, uid(32)))
}
