package network

import (
	"cmp"
	"reflect"
	"slices"
	"strings"

	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/nextstack/nextstack/api/problem"
)

// view is our copy of the database while a transaction is planned. The copy may lag behind, and change while it is read: so
// nothing is concluded from it alone. Every operation that rests on something seen comes with a wait operation that has the
// server check, inside the transaction, that it still is so. If not, the transaction does nothing and is planned again.
type view struct{ tables *cache.TableCache }

// op is one operation of a transaction. Note says what it corrects; operations that only make sure have none.
type op struct {
	ovsdb.Operation
	note string
}

type ops []op

func (o ops) operations() []ovsdb.Operation {
	out := make([]ovsdb.Operation, len(o))
	for i := range o {
		out[i] = o[i].Operation
	}
	return out
}

func (o ops) notes() []string {
	var out []string
	for _, x := range o {
		if x.note != "" {
			out = append(out, x.note)
		}
	}
	return out
}

// rowOf is satisfied by *T for every row type T.
type rowOf[T any] interface {
	*T
	row
}

// get returns a copy of the row with this UUID, or nil.
func get[T any, P rowOf[T]](v view, uuid string) P {
	var zero T
	m, _ := v.tables.Table(P(&zero).table()).Row(uuid).(P)
	return m
}

// find returns copies of the rows whose external_ids include ids, by UUID. It is quick if there is an index on those keys.
func find[T any, P rowOf[T]](v view, ids map[string]string) []P {
	var zero T
	found, err := v.tables.Table(P(&zero).table()).RowsByCondition([]ovsdb.Condition{includes("external_ids", toMap(ids))})
	if err != nil {
		return nil // only for columns and types that the schema has not, which connecting has ruled out
	}
	var out []P
	for _, m := range found {
		out = append(out, m.(P))
	}
	slices.SortFunc(out, func(a, b P) int { return cmp.Compare(a.uuid(), b.uuid()) })
	return out
}

// all calls do with every row of ours in the table. The rows must not be changed.
func all[T any, P rowOf[T]](v view, do func(P)) {
	var zero T
	for _, m := range v.tables.Table(P(&zero).table()).RowsShallow() {
		if r := m.(P); (*r.ids())[keyKind] != "" {
			do(r)
		}
	}
}

func is(uuid string) ovsdb.Condition {
	return ovsdb.NewCondition("_uuid", ovsdb.ConditionEqual, ovsdb.UUID{GoUUID: uuid})
}

func isNot(uuid string) ovsdb.Condition {
	return ovsdb.NewCondition("_uuid", ovsdb.ConditionNotEqual, ovsdb.UUID{GoUUID: uuid})
}

func includes(column string, value any) ovsdb.Condition {
	return ovsdb.NewCondition(column, ovsdb.ConditionIncludes, value)
}

func toMap(m map[string]string) ovsdb.OvsMap {
	out := ovsdb.OvsMap{GoMap: make(map[any]any, len(m))}
	for k, v := range m {
		out.GoMap[k] = v
	}
	return out
}

func toSet(uuids ...string) ovsdb.OvsSet {
	var out ovsdb.OvsSet
	for _, u := range uuids {
		out.GoSet = append(out.GoSet, ovsdb.UUID{GoUUID: u})
	}
	return out
}

// encode returns the given columns of r as the server wants them; without columns, all that are not empty.
func (v view) encode(r row, columns ...any) (ovsdb.Row, error) {
	info, err := v.tables.DatabaseModel().NewModelInfo(r)
	if err != nil {
		return nil, problem.Wrap(err, problem.Internal, "a row of %s cannot be written", r.table())
	}
	out, err := v.tables.Mapper().NewRow(info, columns...)
	return out, problem.Wrap(err, problem.Internal, "a row of %s cannot be written", r.table())
}

// put makes the row be like want: inserted if it is not there, else with the columns corrected that differ. Keys that
// somebody else has put into external_ids stay.
func (v view) put(want row) (ops, error) {
	m := v.tables.Table(want.table()).Row(want.uuid())
	if m == nil {
		r, err := v.encode(want)
		delete(r, "_uuid")
		return ops{{ovsdb.Operation{Op: ovsdb.OperationInsert, Table: want.table(), UUID: want.uuid(), Row: r}, label(want) + " is missing"}}, err
	}
	have := m.(row)
	for k, val := range *have.ids() {
		if !strings.HasPrefix(k, keyPrefix) {
			(*want.ids())[k] = val
		}
	}
	seen, err := v.encode(have, have.columns()...)
	if err != nil {
		return nil, err
	}
	out := ops{{Operation: wait(want.table(), seen, is(want.uuid()))}}
	var changed []any
	for i, c := range want.columns() {
		if !same(c, have.columns()[i]) {
			changed = append(changed, c)
		}
	}
	if len(changed) == 0 {
		return out, nil
	}
	r, err := v.encode(want, changed...)
	var names []string
	for name := range r {
		names = append(names, name)
	}
	slices.Sort(names)
	return append(out, op{
		ovsdb.Operation{Op: ovsdb.OperationUpdate, Table: want.table(), Where: []ovsdb.Condition{is(want.uuid())}, Row: r},
		label(want) + " differs in " + strings.Join(names, ", "),
	}), err
}

func label(r row) string {
	if r.name() != "" {
		return r.table() + " " + r.name()
	}
	return r.table() + " " + r.uuid()
}

// same compares two columns, given by pointers; sets are equal in any order.
func same(a, b any) bool {
	if x, ok := a.(*[]string); ok {
		p, q := slices.Clone(*x), slices.Clone(*b.(*[]string))
		slices.Sort(p)
		slices.Sort(q)
		return slices.Equal(p, q)
	}
	if x, ok := a.(*map[string]string); ok {
		y := *b.(*map[string]string)
		if len(*x) == 0 && len(y) == 0 {
			return true
		}
		return reflect.DeepEqual(*x, y)
	}
	return reflect.DeepEqual(a, b)
}

// wait makes the transaction fail unless exactly one row meets the conditions and looks like this.
func wait(table string, like ovsdb.Row, where ...ovsdb.Condition) ovsdb.Operation {
	columns := make([]string, 0, len(like))
	for c := range like {
		columns = append(columns, c)
	}
	slices.Sort(columns)
	return ovsdb.Operation{
		Op: ovsdb.OperationWait, Table: table, Where: where, Columns: columns, Rows: []ovsdb.Row{like},
		Until: string(ovsdb.WaitConditionEqual), Timeout: new(int),
	}
}

// present makes the transaction fail unless r is still there with the external_ids that were seen, and meets the conditions.
func present(r row, where ...ovsdb.Condition) op {
	return op{Operation: wait(r.table(), ovsdb.Row{"external_ids": toMap(*r.ids())}, append([]ovsdb.Condition{is(r.uuid())}, where...)...)}
}

// exists makes the transaction fail unless the row is there and meets the conditions, whatever else it is.
func exists(table, uuid string, where ...ovsdb.Condition) op {
	return op{Operation: wait(table, ovsdb.Row{"_uuid": ovsdb.UUID{GoUUID: uuid}}, append([]ovsdb.Condition{is(uuid)}, where...)...)}
}

// absent makes the transaction fail if the row is there after all.
func absent(table, uuid string) op {
	o := exists(table, uuid)
	o.Until = string(ovsdb.WaitConditionNotEqual)
	return o
}

func mutate(table, column string, mutator ovsdb.Mutator, value any, note string, where ...ovsdb.Condition) op {
	return op{ovsdb.Operation{
		Op: ovsdb.OperationMutate, Table: table, Where: where,
		Mutations: []ovsdb.Mutation{*ovsdb.NewMutation(column, mutator, value)},
	}, note}
}

// join makes member be in the set column of r. Seen is that column as we know it.
func join(r row, column string, seen []string, member string) ops {
	if slices.Contains(seen, member) {
		return ops{exists(r.table(), r.uuid(), includes(column, toSet(member)))}
	}
	return ops{exists(r.table(), r.uuid()), mutate(r.table(), column, ovsdb.MutateOperationInsert, toSet(member), label(r)+" lacks one of its "+column, is(r.uuid()))}
}

// leave takes member out of the ports of every row that meets the conditions. The server looks for them, not we.
func leave(r row, member string, where ...ovsdb.Condition) op {
	return mutate(r.table(), "ports", ovsdb.MutateOperationDelete, toSet(member), "", append([]ovsdb.Condition{includes("ports", toSet(member))}, where...)...)
}

// discard deletes every row of the table of r whose external_ids include ids.
func discard(r row, ids map[string]string) op {
	return op{Operation: ovsdb.Operation{Op: ovsdb.OperationDelete, Table: r.table(), Where: []ovsdb.Condition{includes("external_ids", toMap(ids))}}}
}

// evict removes rows that carry the mark of one thing but are not one of the rows that it should have: doubles made by
// hand, or left by a restored backup. ACLs need no eviction, for whoever holds them holds exactly those it should.
func (v view) evict(kind, id string, rightful ...string) ops {
	mark := map[string]string{keyKind: kind, keyID: id}
	var out ops
	drop := func(r row, holders ...row) {
		if slices.Contains(rightful, r.uuid()) {
			return
		}
		for _, h := range holders {
			out = append(out, leave(h, r.uuid()))
		}
		out = append(out, op{
			ovsdb.Operation{Op: ovsdb.OperationDelete, Table: r.table(), Where: []ovsdb.Condition{is(r.uuid())}}, label(r) + " is one too many",
		})
	}
	for _, r := range find[logicalRouter](v, mark) {
		drop(r)
	}
	for _, r := range find[dns](v, mark) {
		drop(r)
	}
	for _, r := range find[logicalSwitch](v, mark) {
		drop(r)
	}
	for _, r := range find[dhcpOptions](v, mark) {
		drop(r)
	}
	for _, r := range find[portGroup](v, mark) {
		drop(r)
	}
	for _, r := range find[logicalRouterPort](v, mark) {
		drop(r, &logicalRouter{})
	}
	for _, r := range find[logicalSwitchPort](v, mark) {
		drop(r, &logicalSwitch{})
	}
	return out
}

// free refuses if a row that is not ours has the name that want needs.
func (v view) free(want row) error {
	found, err := v.tables.Table(want.table()).RowsByCondition([]ovsdb.Condition{ovsdb.NewCondition("name", ovsdb.ConditionEqual, want.name())})
	if err != nil {
		return problem.Wrap(err, problem.Internal, "the rows of %s cannot be searched", want.table())
	}
	for uuid, m := range found {
		if uuid != want.uuid() && (*m.(row).ids())[keyKind] == "" {
			return problem.New(problem.Conflict, "%s cannot be made", label(want)).
				Because("there is a row of that name, %s, that is not ours", uuid).Try("rename or remove it in the northbound database")
		}
	}
	return nil
}
