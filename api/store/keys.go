package store

import (
	"strings"

	"github.com/nextstack/nextstack/api"
)

// Root is the prefix of everything NextStack stores.
const Root = "/nextstack/v1/"

// clusterWide stands in keys where the project would be.
const clusterWide = "_"

// Key returns where the record of a resource is.
func Key(kind api.Kind, project, id string) string { return Prefix(kind, project) + id }

// Prefix returns the prefix of all records of a kind in a project; for kinds that are cluster-wide the project is ignored.
func Prefix(kind api.Kind, project string) string {
	if kind.ClusterWide() || project == "" {
		project = clusterWide
	}
	return Root + string(kind) + "/" + project + "/"
}

// KindPrefix returns the prefix of all records of a kind, in every project.
func KindPrefix(kind api.Kind) string { return Root + string(kind) + "/" }

// Claims are keys whose existence is a fact: a name is taken, a resource is needed by another, an address is used, capacity
// is promised. Each is written and removed in the same transaction as the record that it belongs to.

// ClaimsRoot is the prefix of all claims.
const ClaimsRoot = Root + "claims/"

// NameClaim says that a name is taken; its value is the resource's ID.
func NameClaim(kind api.Kind, project, name string) string { return NamePrefix(kind, project) + name }

// NamePrefix returns the prefix of the names of a kind in a project.
func NamePrefix(kind api.Kind, project string) string {
	return ClaimsRoot + "name/" + strings.TrimPrefix(Prefix(kind, project), Root)
}

// UseClaim says that user needs used, which therefore cannot be deleted.
func UseClaim(used, user api.Ref) string {
	return UsePrefix(used) + string(user.Kind) + "/" + user.ID
}

// UsePrefix returns the prefix of the claims of all users of a resource.
func UsePrefix(used api.Ref) string {
	return ClaimsRoot + "use/" + string(used.Kind) + "/" + used.ID + "/"
}

// AddressClaim says that an address of a subnet is used; its value is the port's ID.
func AddressClaim(subnet, address string) string { return AddressPrefix(subnet) + address }

// AddressPrefix returns the prefix of the used addresses of a subnet.
func AddressPrefix(subnet string) string { return ClaimsRoot + "address/" + subnet + "/" }

// NodeClaim says what of a node is promised to a VM; its value is an admission.Promise.
func NodeClaim(agent, vm string) string { return NodePrefix(agent) + vm }

// NodesRoot is the prefix of all that is promised of all nodes.
const NodesRoot = ClaimsRoot + "node/"

// NodePrefix returns the prefix of all that is promised of a node.
func NodePrefix(agent string) string { return NodesRoot + agent + "/" }

// GroupPrefix stands for where the VMs of a group are, as one set of claims: there is nothing below it, as node claims tell
// it, but it has a ledger.
func GroupPrefix(group string) string { return ClaimsRoot + "group/" + group + "/" }

// QuotaClaim says what of a project's quota a VM uses.
func QuotaClaim(project, vm string) string { return QuotaPrefix(project) + vm }

// QuotaPrefix returns the prefix of all that is used of a project's quota.
func QuotaPrefix(project string) string { return ClaimsRoot + "quota/" + project + "/" }

// SecretKey returns where the encrypted secrets of a VM, an agent or a pool are.
func SecretKey(id string) string { return Root + "secrets/" + id }

// LedgerKey returns the key that every change of a set of claims touches, so that sums over the set can be compared and
// changed in one transaction.
func LedgerKey(prefix string) string {
	return Root + "ledger/" + strings.TrimPrefix(prefix, ClaimsRoot)
}

// PoolPathClaim says that a directory of an agent is a pool; its value is the pool's ID.
func PoolPathClaim(agent, path string) string { return PoolPaths + agent + path }

// PoolPaths is the prefix of the claims on all directories of all agents that are pools.
const PoolPaths = ClaimsRoot + "poolpath/"

// PoolPathOf returns what PoolPathClaim made the key of.
func PoolPathOf(key string) (agent, path string) {
	agent, path, _ = strings.Cut(strings.TrimPrefix(key, PoolPaths), "/")
	return agent, "/" + path
}
