package network

import (
	"github.com/ovn-kubernetes/libovsdb/model"
)

// Rows of the northbound database: the columns that we decide or need to know, and no others.

type logicalRouter struct {
	UUID        string            `ovsdb:"_uuid"`
	Name        string            `ovsdb:"name"`
	Ports       []string          `ovsdb:"ports"`
	Enabled     *bool             `ovsdb:"enabled"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

type logicalRouterPort struct {
	UUID        string            `ovsdb:"_uuid"`
	Name        string            `ovsdb:"name"`
	MAC         string            `ovsdb:"mac"`
	Networks    []string          `ovsdb:"networks"`
	Enabled     *bool             `ovsdb:"enabled"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

type logicalSwitch struct {
	UUID        string            `ovsdb:"_uuid"`
	Name        string            `ovsdb:"name"`
	Ports       []string          `ovsdb:"ports"`
	ACLs        []string          `ovsdb:"acls"`
	DNSRecords  []string          `ovsdb:"dns_records"`
	OtherConfig map[string]string `ovsdb:"other_config"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

type logicalSwitchPort struct {
	UUID         string            `ovsdb:"_uuid"`
	Name         string            `ovsdb:"name"`
	Type         string            `ovsdb:"type"`
	Addresses    []string          `ovsdb:"addresses"`
	PortSecurity []string          `ovsdb:"port_security"`
	DHCPv4       *string           `ovsdb:"dhcpv4_options"`
	Enabled      *bool             `ovsdb:"enabled"`
	Options      map[string]string `ovsdb:"options"`
	ExternalIDs  map[string]string `ovsdb:"external_ids"`
}

type dhcpOptions struct {
	UUID        string            `ovsdb:"_uuid"`
	CIDR        string            `ovsdb:"cidr"`
	Options     map[string]string `ovsdb:"options"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

type dns struct {
	UUID        string            `ovsdb:"_uuid"`
	Records     map[string]string `ovsdb:"records"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

type portGroup struct {
	UUID        string            `ovsdb:"_uuid"`
	Name        string            `ovsdb:"name"`
	Ports       []string          `ovsdb:"ports"`
	ACLs        []string          `ovsdb:"acls"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

type acl struct {
	UUID        string            `ovsdb:"_uuid"`
	Direction   string            `ovsdb:"direction"`
	Priority    int               `ovsdb:"priority"`
	Match       string            `ovsdb:"match"`
	Action      string            `ovsdb:"action"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

// row is what the tables have in common.
type row interface {
	table() string
	uuid() string
	name() string
	ids() *map[string]string
	// columns returns pointers to the columns that wiring decides as a whole. Sets that grow and shrink member by member
	// (ports of switches, routers and groups) are not among them.
	columns() []any
}

func (r *logicalRouter) table() string     { return "Logical_Router" }
func (r *logicalRouterPort) table() string { return "Logical_Router_Port" }
func (r *logicalSwitch) table() string     { return "Logical_Switch" }
func (r *logicalSwitchPort) table() string { return "Logical_Switch_Port" }
func (r *dhcpOptions) table() string       { return "DHCP_Options" }
func (r *dns) table() string               { return "DNS" }
func (r *portGroup) table() string         { return "Port_Group" }
func (r *acl) table() string               { return "ACL" }

func (r *logicalRouter) uuid() string     { return r.UUID }
func (r *logicalRouterPort) uuid() string { return r.UUID }
func (r *logicalSwitch) uuid() string     { return r.UUID }
func (r *logicalSwitchPort) uuid() string { return r.UUID }
func (r *dhcpOptions) uuid() string       { return r.UUID }
func (r *dns) uuid() string               { return r.UUID }
func (r *portGroup) uuid() string         { return r.UUID }
func (r *acl) uuid() string               { return r.UUID }

func (r *logicalRouter) name() string     { return r.Name }
func (r *logicalRouterPort) name() string { return r.Name }
func (r *logicalSwitch) name() string     { return r.Name }
func (r *logicalSwitchPort) name() string { return r.Name }
func (r *dhcpOptions) name() string       { return "" }
func (r *dns) name() string               { return "" }
func (r *portGroup) name() string         { return r.Name }
func (r *acl) name() string               { return "" }

func (r *logicalRouter) ids() *map[string]string     { return &r.ExternalIDs }
func (r *logicalRouterPort) ids() *map[string]string { return &r.ExternalIDs }
func (r *logicalSwitch) ids() *map[string]string     { return &r.ExternalIDs }
func (r *logicalSwitchPort) ids() *map[string]string { return &r.ExternalIDs }
func (r *dhcpOptions) ids() *map[string]string       { return &r.ExternalIDs }
func (r *dns) ids() *map[string]string               { return &r.ExternalIDs }
func (r *portGroup) ids() *map[string]string         { return &r.ExternalIDs }
func (r *acl) ids() *map[string]string               { return &r.ExternalIDs }

func (r *logicalRouter) columns() []any { return []any{&r.Name, &r.Enabled, &r.ExternalIDs} }
func (r *logicalRouterPort) columns() []any {
	return []any{&r.Name, &r.MAC, &r.Networks, &r.Enabled, &r.ExternalIDs}
}

func (r *logicalSwitch) columns() []any {
	return []any{&r.Name, &r.ACLs, &r.DNSRecords, &r.OtherConfig, &r.ExternalIDs}
}

func (r *logicalSwitchPort) columns() []any {
	return []any{&r.Name, &r.Type, &r.Addresses, &r.PortSecurity, &r.DHCPv4, &r.Enabled, &r.Options, &r.ExternalIDs}
}
func (r *dhcpOptions) columns() []any { return []any{&r.CIDR, &r.Options, &r.ExternalIDs} }
func (r *dns) columns() []any         { return []any{&r.Records, &r.ExternalIDs} }
func (r *portGroup) columns() []any   { return []any{&r.Name, &r.ACLs, &r.ExternalIDs} }
func (r *acl) columns() []any {
	return []any{&r.Direction, &r.Priority, &r.Match, &r.Action, &r.ExternalIDs}
}

// tables lists one empty row of every table, in the order in which an inventory shows them.
func tables() []row {
	return []row{
		&logicalRouter{}, &dns{}, &logicalSwitch{}, &dhcpOptions{}, &logicalRouterPort{}, &logicalSwitchPort{}, &portGroup{}, &acl{},
	}
}

// northbound describes the part of the database that we keep a copy of, with the look-ups that wiring needs.
func northbound() (model.ClientDBModel, error) {
	models := map[string]model.Model{}
	indexes := map[string][]model.ClientIndex{}
	by := func(keys ...string) model.ClientIndex {
		var ix model.ClientIndex
		for _, k := range keys {
			ix.Columns = append(ix.Columns, model.ColumnKey{Column: "external_ids", Key: k})
		}
		return ix
	}
	for _, r := range tables() {
		models[r.table()] = r
		indexes[r.table()] = []model.ClientIndex{by(keyKind, keyID)}
	}
	ports := (&logicalSwitchPort{}).table()
	indexes[ports] = append(indexes[ports], by(keyVPC), by(keySubnet), by(keyVPC, keyHostname))
	m, err := model.NewClientDBModel("OVN_Northbound", models)
	m.SetIndexes(indexes)
	return m, err
}

// owned returns the external_ids that every row has.
func owned(kind, id, project, role string) map[string]string {
	return map[string]string{keyKind: kind, keyID: id, keyProject: project, keyRole: role}
}
