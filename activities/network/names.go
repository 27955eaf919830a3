package network

import (
	"slices"
	"strings"

	"github.com/nextstack/nextstack/workflows/steps"
)

// portChanges are ports as they will be when the transaction is through, by port ID; nil: it will be gone.
type portChanges map[string]*steps.PortWiring

// records returns the whole DNS table of a VPC.
func (v view) records(w steps.VPCWiring, changed portChanges) map[string]string {
	hosts := v.affected(changed)
	for _, lsp := range find[logicalSwitchPort](v, map[string]string{keyVPC: w.VPC}) {
		hosts[lsp.ExternalIDs[keyHostname]] = true
	}
	out := map[string]string{}
	for host := range hosts {
		if a := v.addresses(w.VPC, host, changed); a != "" {
			for _, name := range hostNames(host, w.Name) {
				out[name] = a
			}
		}
	}
	return out
}

// affected returns the hostnames that changed ports have or had.
func (v view) affected(changed portChanges) map[string]bool {
	hosts := map[string]bool{}
	for id, w := range changed {
		if w != nil && w.Hostname != "" {
			hosts[w.Hostname] = true
		}
		if lsp := get[logicalSwitchPort](v, id); lsp != nil && lsp.ExternalIDs[keyHostname] != "" {
			hosts[lsp.ExternalIDs[keyHostname]] = true
		}
	}
	return hosts
}

// addresses returns what a hostname stands for in a VPC: a VM with two ports has two addresses.
func (v view) addresses(vpc, host string, changed portChanges) string {
	if host == "" {
		return ""
	}
	var out []string
	for _, lsp := range find[logicalSwitchPort](v, map[string]string{keyVPC: vpc, keyHostname: host}) {
		if _, superseded := changed[lsp.UUID]; !superseded && lsp.ExternalIDs[keyKind] == KindPort {
			out = append(out, portOf(lsp).Address)
		}
	}
	for _, w := range changed {
		if w == nil || w.Hostname != host {
			continue
		}
		if ls := get[logicalSwitch](v, w.Subnet); ls != nil && ls.ExternalIDs[keyVPC] == vpc {
			out = append(out, w.Address)
		}
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), " ")
}
