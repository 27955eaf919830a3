package network

import (
	"testing"

	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

func TestLocalOVS(t *testing.T) {
	s := newServer(t, switchSchema)
	ctx := testContext(t)
	change := func(todo ...ovsdb.Operation) {
		t.Helper()
		l := newLink(s.endpoint(), "Open_vSwitch", func() (model.ClientDBModel, error) { return openVSwitch() }, nil)
		l.log = NewOVN("", nil).link.log
		defer l.close()
		session, err := l.session(ctx)
		require.NoError(t, err)
		require.NoError(t, session.commit(ctx, todo))
	}
	port := func(name, iface string) (string, []ovsdb.Operation) {
		ids := ovsdb.OvsMap{}
		if iface != "" {
			ids = toMap(map[string]string{"iface-id": iface})
		}
		i, p := rowUUID("i", name), rowUUID("p", name)
		return p, []ovsdb.Operation{
			{Op: ovsdb.OperationInsert, Table: "Interface", UUID: i, Row: ovsdb.Row{"name": name, "external_ids": ids}},
			{Op: ovsdb.OperationInsert, Table: "Port", UUID: p, Row: ovsdb.Row{"name": name, "interfaces": toSet(i)}},
		}
	}
	br := rowUUID("br-int")
	change(ovsdb.Operation{Op: ovsdb.OperationInsert, Table: "Open_vSwitch", UUID: rowUUID("root"), Row: ovsdb.Row{
		"external_ids": toMap(map[string]string{"system-id": "node-a"}), "ovs_version": "3.1.0",
	}})
	_, err := Local(ctx, s.endpoint())
	require.True(t, problem.Is(err, problem.Unsupported), "%v", err)
	found, err := ListPorts(ctx, s.endpoint())
	require.NoError(t, err)
	require.Empty(t, found)

	pi, a := port("br-int", "")
	p1, b := port("tap1", uid(31))
	p2, c := port("tap0", uid(32))
	p3, d := port("ovn-b-0", "")
	p4, e := port("tap-elsewhere", uid(33))
	todo := append(append(append(append(a, b...), c...), d...), e...)
	todo = append(todo,
		ovsdb.Operation{Op: ovsdb.OperationInsert, Table: "Bridge", UUID: br, Row: ovsdb.Row{"name": "br-int", "datapath_type": "netdev", "ports": toSet(pi, p1, p2, p3)}},
		ovsdb.Operation{Op: ovsdb.OperationInsert, Table: "Bridge", UUID: rowUUID("other"), Row: ovsdb.Row{"name": "other", "ports": toSet(p4)}},
		mutate("Open_vSwitch", "bridges", ovsdb.MutateOperationInsert, toSet(br, rowUUID("other")), "", is(rowUUID("root"))).Operation)
	change(todo...)

	info, err := Local(ctx, s.endpoint())
	require.NoError(t, err)
	require.Equal(t, LocalInfo{ChassisID: "node-a", Version: "3.1.0", UserspaceDatapath: true}, info)
	found, err = ListPorts(ctx, s.endpoint())
	require.NoError(t, err)
	require.Equal(t, []steps.PortFound{{Name: "tap0", Port: uid(32)}, {Name: "tap1", Port: uid(31)}}, found)

	require.NoError(t, RemovePort(ctx, s.endpoint(), "tap1"))
	require.NoError(t, RemovePort(ctx, s.endpoint(), "tap1"), "it is gone already")
	found, err = ListPorts(ctx, s.endpoint())
	require.NoError(t, err)
	require.Equal(t, []steps.PortFound{{Name: "tap0", Port: uid(32)}}, found)
	require.True(t, problem.Is(RemovePort(ctx, s.endpoint(), "tap-elsewhere"), problem.Conflict))
	require.True(t, problem.Is(RemovePort(ctx, s.endpoint(), "br-int"), problem.Invalid))
	require.True(t, problem.Is(RemovePort(ctx, s.endpoint(), "a b"), problem.Invalid))
	s.stop()
	_, err = ListPorts(ctx, s.endpoint())
	require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
}
