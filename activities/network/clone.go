package network

import (
	"maps"
	"slices"

	"github.com/ovn-kubernetes/libovsdb/model"
)

// The copy of the database hands out clones of its rows. Unless a row can clone itself, that goes by way of JSON, which for
// a switch with thousands of ports takes longer than the transaction.

func (r *logicalRouter) cloned() *logicalRouter {
	c := *r
	c.Ports, c.Enabled, c.ExternalIDs = slices.Clone(r.Ports), clonePtr(r.Enabled), maps.Clone(r.ExternalIDs)
	return &c
}

func (r *logicalRouterPort) cloned() *logicalRouterPort {
	c := *r
	c.Networks, c.Enabled, c.ExternalIDs = slices.Clone(r.Networks), clonePtr(r.Enabled), maps.Clone(r.ExternalIDs)
	return &c
}

func (r *logicalSwitch) cloned() *logicalSwitch {
	c := *r
	c.Ports, c.ACLs, c.DNSRecords = slices.Clone(r.Ports), slices.Clone(r.ACLs), slices.Clone(r.DNSRecords)
	c.OtherConfig, c.ExternalIDs = maps.Clone(r.OtherConfig), maps.Clone(r.ExternalIDs)
	return &c
}

func (r *logicalSwitchPort) cloned() *logicalSwitchPort {
	c := *r
	c.Addresses, c.PortSecurity = slices.Clone(r.Addresses), slices.Clone(r.PortSecurity)
	c.DHCPv4, c.Enabled = clonePtr(r.DHCPv4), clonePtr(r.Enabled)
	c.Options, c.ExternalIDs = maps.Clone(r.Options), maps.Clone(r.ExternalIDs)
	return &c
}

func (r *dhcpOptions) cloned() *dhcpOptions {
	c := *r
	c.Options, c.ExternalIDs = maps.Clone(r.Options), maps.Clone(r.ExternalIDs)
	return &c
}

func (r *dns) cloned() *dns {
	c := *r
	c.Records, c.ExternalIDs = maps.Clone(r.Records), maps.Clone(r.ExternalIDs)
	return &c
}

func (r *portGroup) cloned() *portGroup {
	c := *r
	c.Ports, c.ACLs, c.ExternalIDs = slices.Clone(r.Ports), slices.Clone(r.ACLs), maps.Clone(r.ExternalIDs)
	return &c
}

func (r *acl) cloned() *acl {
	c := *r
	c.ExternalIDs = maps.Clone(r.ExternalIDs)
	return &c
}

func clonePtr[T any](p *T) *T {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}

// CloneModel and CloneModelInto implement model.CloneableModel.

func (r *logicalRouter) CloneModel() model.Model     { return r.cloned() }
func (r *logicalRouterPort) CloneModel() model.Model { return r.cloned() }
func (r *logicalSwitch) CloneModel() model.Model     { return r.cloned() }
func (r *logicalSwitchPort) CloneModel() model.Model { return r.cloned() }
func (r *dhcpOptions) CloneModel() model.Model       { return r.cloned() }
func (r *dns) CloneModel() model.Model               { return r.cloned() }
func (r *portGroup) CloneModel() model.Model         { return r.cloned() }
func (r *acl) CloneModel() model.Model               { return r.cloned() }

func (r *logicalRouter) CloneModelInto(m model.Model)     { *m.(*logicalRouter) = *r.cloned() }
func (r *logicalRouterPort) CloneModelInto(m model.Model) { *m.(*logicalRouterPort) = *r.cloned() }
func (r *logicalSwitch) CloneModelInto(m model.Model)     { *m.(*logicalSwitch) = *r.cloned() }
func (r *logicalSwitchPort) CloneModelInto(m model.Model) { *m.(*logicalSwitchPort) = *r.cloned() }
func (r *dhcpOptions) CloneModelInto(m model.Model)       { *m.(*dhcpOptions) = *r.cloned() }
func (r *dns) CloneModelInto(m model.Model)               { *m.(*dns) = *r.cloned() }
func (r *portGroup) CloneModelInto(m model.Model)         { *m.(*portGroup) = *r.cloned() }
func (r *acl) CloneModelInto(m model.Model)               { *m.(*acl) = *r.cloned() }
