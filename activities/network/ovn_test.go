package network

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func newTestOVN(t testing.TB) (*server, *OVN) {
	t.Helper()
	s := newServer(t, northboundSchema)
	o := NewOVN(s.endpoint(), nil)
	t.Cleanup(o.Close)
	return s, o
}

func TestOVNConforms(t *testing.T) {
	conformance(t, func(t *testing.T) Driver {
		_, o := newTestOVN(t)
		return o
	})
}

// TestTwoConnectionsAtOnce is two control planes that do the same at the same time.
func TestTwoConnectionsAtOnce(t *testing.T) {
	s, a := newTestOVN(t)
	b := NewOVN(s.endpoint(), nil)
	t.Cleanup(b.Close)
	ctx := testContext(t)
	w := aWorld()
	pick := func(i int) Driver { return []Driver{a, b}[i%2] }
	atOnce(t, 10, func(i int) error { return pick(i).WireVPC(ctx, w.vpc) })
	atOnce(t, 12, func(i int) error { return pick(i).WireSubnet(ctx, w.subnets[i/2%2]) })
	atOnce(t, 12, func(i int) error { return pick(i).WireSecurityGroup(ctx, w.groups[i/2%2]) })
	atOnce(t, 12, func(i int) error { return pick(i).WirePorts(ctx, w.ports) })
	settled(ctx, t, a, w)
	settled(ctx, t, b, w)
	require.Len(t, dump(t, a, "Logical_Switch"), 2)
	require.Len(t, dump(t, a, "DHCP_Options"), 2)
	require.Len(t, dump(t, a, "DNS"), 1)
	atOnce(t, 12, func(i int) error { return pick(i).UnwirePorts(ctx, []string{uid(31 + i%3)}) })
	atOnce(t, 12, func(i int) error { return pick(i).UnwireSubnet(ctx, uid(11+i/2%2)) })
	atOnce(t, 12, func(i int) error { return pick(i).UnwireSecurityGroup(ctx, uid(21+i/2%2)) })
	atOnce(t, 10, func(i int) error { return pick(i).UnwireVPC(ctx, uid(1)) })
	noneLeft(t, a)
}

// noneLeft checks with the server that no row of any table is ours.
func noneLeft(t *testing.T, o *OVN) {
	t.Helper()
	for table, rows := range dumpAll(t, o) {
		for id, r := range rows {
			b, err := json.Marshal(r)
			require.NoError(t, err)
			require.NotContains(t, string(b), keyPrefix, "%s %s is left", table, id)
		}
	}
}

func TestEveryRowIsOwned(t *testing.T) {
	_, o := newTestOVN(t)
	ctx := testContext(t)
	w := aWorld()
	w.wire(ctx, t, o)
	count := map[string]int{}
	for table, rows := range dumpAll(t, o) {
		count[table] = len(rows)
		for id, r := range rows {
			ids := r["external_ids"].(ovsdb.OvsMap).GoMap
			for _, key := range []string{keyKind, keyID, keyProject, keyRole} {
				require.NotEmpty(t, ids[key], "%s of %s %s", key, table, id)
			}
			require.Equal(t, "default", ids[keyProject])
		}
	}
	require.Equal(t, map[string]int{
		"Logical_Router": 1, "DNS": 1, "Logical_Switch": 2, "DHCP_Options": 2, "Logical_Router_Port": 2,
		"Logical_Switch_Port": 5, "Port_Group": 2, "ACL": 2*2 + 2*2 + 3,
	}, count)
	require.NoError(t, o.UnwireVPC(ctx, uid(1)))
	require.NoError(t, o.UnwireSecurityGroup(ctx, uid(21)))
	require.NoError(t, o.UnwireSecurityGroup(ctx, uid(22)))
	for table, rows := range dumpAll(t, o) {
		require.Empty(t, rows, table)
	}
}

// TestLostRows removes every row there is, one at a time, by hand, and mends what is left, or wires again if the main row has
// gone: the database must be as before.
func TestLostRows(t *testing.T) {
	s, o := newTestOVN(t)
	ctx := testContext(t)
	w := aWorld()
	w.wire(ctx, t, o)
	whole := dumpAll(t, o)
	holders := map[string][2]string{ // who must let go before the row can be deleted
		"Logical_Router_Port": {"Logical_Router", "ports"}, "Logical_Switch_Port": {"Logical_Switch", "ports"}, "ACL": {"Port_Group", "acls"},
	}
	n := 0
	for table, rows := range whole {
		for id := range rows {
			todo := []ovsdb.Operation{}
			if h, ok := holders[table]; ok {
				todo = append(todo, mutate(h[0], h[1], ovsdb.MutateOperationDelete, toSet(id), "", includes(h[1], toSet(id))).Operation)
			}
			if table == "ACL" {
				todo = append(todo, mutate("Logical_Switch", "acls", ovsdb.MutateOperationDelete, toSet(id), "", includes("acls", toSet(id))).Operation)
			}
			byHand(t, s.endpoint(), append(todo, ovsdb.Operation{Op: ovsdb.OperationDelete, Table: table, Where: []ovsdb.Condition{is(id)}})...)
			require.NotEmpty(t, compare(w.want(), *list(ctx, t, o)), "the audit does not see that %s %s is gone", table, id)
			if strings.Contains(id, "-0000-4000-8000-") { // a main row, whose UUID is the ID of the thing
				w.wire(ctx, t, o)
			} else {
				mendAll(ctx, t, o)
			}
			require.Equal(t, whole, dumpAll(t, o), "after %s %s was lost", table, id)
			n++
		}
	}
	t.Logf("%d rows lost and restored", n)
}

// TestMendsWithoutThePorts loses what the ports only refer to: wiring the thing itself must bring the references back.
func TestMendsWithoutThePorts(t *testing.T) {
	s, o := newTestOVN(t)
	ctx := testContext(t)
	w := aWorld()
	w.wire(ctx, t, o)
	whole := dumpAll(t, o)
	lose := func(table, id string) {
		byHand(t, s.endpoint(), ovsdb.Operation{Op: ovsdb.OperationDelete, Table: table, Where: []ovsdb.Condition{is(id)}})
	}
	lose("DHCP_Options", dhcpRow(uid(11)))
	require.NoError(t, o.WireSubnet(ctx, w.subnets[0]))
	require.Equal(t, whole, dumpAll(t, o))
	lose("Port_Group", uid(21))
	require.NoError(t, o.WireSecurityGroup(ctx, w.groups[0]))
	require.Equal(t, whole, dumpAll(t, o))
	lose("Logical_Router", uid(1))
	require.NoError(t, o.WireVPC(ctx, w.vpc))
	require.Equal(t, whole, dumpAll(t, o))
	lose("DNS", namesRow(uid(1)))
	require.NoError(t, o.WirePorts(ctx, w.ports[:1]))
	require.Equal(t, whole, dumpAll(t, o))
	lose("DNS", namesRow(uid(1)))
	require.NoError(t, o.WireVPC(ctx, w.vpc))
	require.Equal(t, whole, dumpAll(t, o))
}

// TestAlteredRows changes what we decide, by hand.
func TestAlteredRows(t *testing.T) {
	s, o := newTestOVN(t)
	ctx := testContext(t)
	w := aWorld()
	w.wire(ctx, t, o)
	whole := dumpAll(t, o)
	for _, c := range []struct {
		table, id string
		row       ovsdb.Row
	}{
		{"Logical_Router", uid(1), ovsdb.Row{"enabled": false}},
		{"Logical_Switch", uid(11), ovsdb.Row{"acls": ovsdb.OvsSet{}}},
		{"Logical_Switch", uid(11), ovsdb.Row{"other_config": toMap(map[string]string{"subnet": "1.2.3.0/24"})}},
		{"Logical_Switch_Port", uid(31), ovsdb.Row{"port_security": ovsdb.OvsSet{}}},
		{"Logical_Switch_Port", uid(31), ovsdb.Row{"enabled": false, "type": "localport"}},
		{"Logical_Switch_Port", uid(31), ovsdb.Row{"addresses": ovsdb.OvsSet{GoSet: []any{"unknown"}}}},
		{"Logical_Switch_Port", uid(31), ovsdb.Row{"dhcpv4_options": ovsdb.OvsSet{}}},
		{"DHCP_Options", dhcpRow(uid(12)), ovsdb.Row{"options": toMap(map[string]string{"mtu": "9000"})}},
		{"DNS", namesRow(uid(1)), ovsdb.Row{"records": toMap(map[string]string{"vm1": "6.6.6.6"})}},
		{"Logical_Switch_Port", uid(31), ovsdb.Row{ // another address, and all that follows from it
			"addresses": ovsdb.OvsSet{GoSet: []any{"52:54:00:00:00:66 10.1.0.66"}}, "port_security": ovsdb.OvsSet{GoSet: []any{"52:54:00:00:00:66 10.1.0.66"}},
		}},
		{"Logical_Switch_Port", uid(31), ovsdb.Row{"options": toMap(map[string]string{"mcast_flood": "true"})}},
		{"Port_Group", uid(21), ovsdb.Row{"acls": ovsdb.OvsSet{}}},
		{"Port_Group", uid(21), ovsdb.Row{"ports": toSet(uid(32))}}, // one too many, two missing
		{"ACL", groupACLs(w.groups[0])[0].UUID, ovsdb.Row{"action": "allow"}},
		{"Logical_Router_Port", routerPortRow(uid(11)), ovsdb.Row{"mac": "0a:00:00:00:00:66"}},
	} {
		alter := func() {
			t.Helper()
			byHand(t, s.endpoint(), ovsdb.Operation{Op: ovsdb.OperationUpdate, Table: c.table, Where: []ovsdb.Condition{is(c.id)}, Row: c.row})
			require.NotEmpty(t, compare(w.want(), *list(ctx, t, o)), "the audit does not see %s %v", c.table, c.row)
		}
		alter()
		w.wire(ctx, t, o)
		require.Equal(t, whole, dumpAll(t, o), "%s %v", c.table, c.row)
		alter()
		mendAll(ctx, t, o)
		require.Equal(t, whole, dumpAll(t, o), "%s %v", c.table, c.row)
	}
}

// mendAll repairs what an audit of these rows alone finds.
func mendAll(ctx context.Context, t *testing.T, o *OVN) {
	t.Helper()
	var findings []api.Finding
	for _, it := range list(ctx, t, o).Items {
		for _, d := range it.Defects {
			findings = append(findings, api.Finding{Side: "ovn", Kind: it.Kind, ID: it.ID, Problem: d})
		}
	}
	require.NotEmpty(t, findings, "the rows alone do not tell that they were altered")
	findings, err := repair(ctx, o, findings)
	require.NoError(t, err)
	for _, f := range findings {
		require.True(t, f.Repaired, "%+v", f)
	}
}

// TestWiringTwiceChangesNothing: what is right is only looked at, so that northd and the nodes have nothing to do.
func TestWiringTwiceChangesNothing(t *testing.T) {
	_, o := newTestOVN(t)
	ctx := testContext(t)
	w := aWorld()
	w.wire(ctx, t, o)
	versions := func() map[string]any {
		out := map[string]any{}
		for _, r := range tables() {
			for id, row := range dump(t, o, r.table()) {
				out[r.table()+id] = row["_version"]
			}
		}
		return out
	}
	before := versions()
	w.wire(ctx, t, o)
	require.Equal(t, before, versions())
}

// TestForeignRows: what is not ours stays as it is; where it is in our way, we say so.
func TestForeignRows(t *testing.T) {
	s, o := newTestOVN(t)
	ctx := testContext(t)
	w := aWorld()
	lsp, ls := uid(501), uid(502)
	byHand(t, s.endpoint(),
		ovsdb.Operation{Op: ovsdb.OperationInsert, Table: "Logical_Switch_Port", UUID: lsp, Row: ovsdb.Row{"name": uid(31)}},
		ovsdb.Operation{Op: ovsdb.OperationInsert, Table: "Logical_Switch", UUID: ls, Row: ovsdb.Row{"name": "theirs", "ports": toSet(lsp)}},
		ovsdb.Operation{Op: ovsdb.OperationInsert, Table: "DHCP_Options", Row: ovsdb.Row{"cidr": "10.1.0.0/24"}},
		ovsdb.Operation{Op: ovsdb.OperationInsert, Table: "DNS", Row: ovsdb.Row{"records": toMap(map[string]string{"x": "1.1.1.1"})}},
		ovsdb.Operation{Op: ovsdb.OperationInsert, Table: "Port_Group", Row: ovsdb.Row{"name": "theirs", "external_ids": toMap(map[string]string{"owner": "them"})}},
	)
	require.Empty(t, list(ctx, t, o).Items)
	require.NoError(t, o.WireVPC(ctx, w.vpc))
	require.NoError(t, o.WireSubnet(ctx, w.subnets[0]))
	err := o.WirePorts(ctx, w.ports[1:2])
	require.NoError(t, err)
	require.NoError(t, o.WireSecurityGroup(ctx, w.groups[0]))
	require.NoError(t, o.WireSecurityGroup(ctx, w.groups[1]))
	err = o.WirePorts(ctx, w.ports[:1])
	require.True(t, problem.Is(err, problem.Conflict), "%v", err)
	require.ErrorContains(t, err, lsp)

	// Their keys on our rows, and our ports in their groups, are theirs.
	byHand(t, s.endpoint(),
		mutate("Logical_Switch", "external_ids", ovsdb.MutateOperationInsert, toMap(map[string]string{"note": "keep"}), "", is(uid(11))).Operation,
		ovsdb.Operation{Op: ovsdb.OperationUpdate, Table: "Port_Group", Where: []ovsdb.Condition{ovsdb.NewCondition("name", ovsdb.ConditionEqual, "theirs")}, Row: ovsdb.Row{"ports": toSet(uid(32))}},
	)
	w.subnets[0].DNS = []string{"9.9.9.9"}
	require.NoError(t, o.WireSubnet(ctx, w.subnets[0]))
	require.NoError(t, o.WirePorts(ctx, w.ports[1:2]))
	require.Equal(t, "keep", dump(t, o, "Logical_Switch")[uid(11)]["external_ids"].(ovsdb.OvsMap).GoMap["note"])
	theirs := 0
	for _, r := range dump(t, o, "Port_Group") {
		if r["name"] == "theirs" {
			theirs++
			require.Equal(t, ovsdb.UUID{GoUUID: uid(32)}, r["ports"])
		}
	}
	require.Equal(t, 1, theirs)

	require.NoError(t, o.UnwireVPC(ctx, uid(1)))
	require.NoError(t, o.UnwireSecurityGroup(ctx, uid(21)))
	require.NoError(t, o.UnwireSecurityGroup(ctx, uid(22)))
	noneLeft(t, o)
	for table, n := range map[string]int{"Logical_Switch": 1, "Logical_Switch_Port": 1, "DHCP_Options": 1, "DNS": 1, "Port_Group": 1, "ACL": 0, "Logical_Router": 0, "Logical_Router_Port": 0} {
		require.Len(t, dump(t, o, table), n, table)
	}
}

// TestDoubles: rows that carry our mark under another UUID, as somebody's script or a restored copy may leave them.
func TestDoubles(t *testing.T) {
	s, o := newTestOVN(t)
	ctx := testContext(t)
	w := aWorld()
	mark := func(kind, id string) ovsdb.OvsMap { return toMap(owned(kind, id, "default", "x")) }
	insert := func(table, uuid string, r ovsdb.Row) ovsdb.Operation {
		return ovsdb.Operation{Op: ovsdb.OperationInsert, Table: table, UUID: uuid, Row: r}
	}
	plant := func() {
		byHand(t, s.endpoint(),
			insert("Logical_Router", uid(601), ovsdb.Row{"name": "vpc-" + uid(1), "external_ids": mark(KindVPC, uid(1))}),
			insert("DNS", uid(602), ovsdb.Row{"external_ids": mark(KindVPC, uid(1))}),
			insert("DHCP_Options", uid(603), ovsdb.Row{"cidr": "10.1.0.0/24", "external_ids": mark(KindSubnet, uid(11))}),
			insert("Logical_Switch_Port", uid(604), ovsdb.Row{"name": uid(31), "external_ids": mark(KindPort, uid(31))}),
			insert("Logical_Switch", uid(605), ovsdb.Row{"name": "old", "ports": toSet(uid(604)), "external_ids": mark(KindSubnet, uid(11))}),
			insert("Port_Group", uid(606), ovsdb.Row{"name": groupName(uid(21)), "external_ids": mark(KindSecurityGroup, uid(21))}),
		)
	}
	plant()
	require.Len(t, list(ctx, t, o).Items, 4)
	for _, it := range list(ctx, t, o).Items {
		require.NotEmpty(t, it.Defects, "%+v", it)
	}
	w.wire(ctx, t, o)
	settled(ctx, t, o, w)
	for _, rows := range dumpAll(t, o) {
		for id := range rows {
			require.False(t, strings.HasPrefix(id, "0000025"), "double %s is left", id)
		}
	}
	require.NoError(t, o.UnwireVPC(ctx, uid(1)))
	require.NoError(t, o.UnwireSecurityGroup(ctx, uid(21)))
	require.NoError(t, o.UnwireSecurityGroup(ctx, uid(22)))
	plant()
	for _, it := range list(ctx, t, o).Items {
		require.NoError(t, o.RemoveStray(ctx, it.Kind, it.ID))
	}
	noneLeft(t, o)
}

func TestEndpoints(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	for _, bad := range []string{"", "unix:", "unix:relative", "tcp:", "tcp:host", "ssl:h:1", "/run/x.sock", "tcp:\x00"} {
		_, err := NewOVN(bad, nil).List(ctx)
		require.True(t, problem.Is(err, problem.Invalid), "%q: %v", bad, err)
	}
	for _, away := range []string{"unix:/nonexistent/x.sock", "tcp:127.0.0.1:1"} {
		err := NewOVN(away, nil).WireVPC(ctx, aWorld().vpc)
		require.True(t, problem.Is(err, problem.Unavailable), "%q: %v", away, err)
		require.NoError(t, ctx.Err(), "the answer came too late")
		cancel()
		ctx, cancel = context.WithTimeout(context.Background(), 200*time.Millisecond)
	}
	cancel()
	err := NewOVN("unix:/nonexistent/x.sock", nil).WireVPC(ctx, aWorld().vpc)
	require.True(t, problem.Is(err, problem.Cancelled), "%v", err)
}
