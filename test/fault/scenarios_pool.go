package fault

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
)

// poolOn asks for a pool on some of the nodes.
func poolOn(dir string, shared bool, nodes ...string) Accept {
	return with((*admit).CreatePool, api.PoolCreate{Name: "fast", Type: api.PoolDir, Path: dir + "/fast", Shared: shared, Agents: nodes})
}

// mountedPool asks for a pool of a file system that agents mount.
func mountedPool(kind, name string, nodes ...string) Accept {
	return with((*admit).CreatePool, api.PoolCreate{Name: "fast", Type: kind, Source: api.PoolSource{Hosts: []string{"10.0.0.9"}, Name: name}, Agents: nodes})
}

// cephOn asks for a pool of a Ceph cluster on some of the nodes.
func cephOn(nodes ...string) Accept {
	return with((*admit).CreatePool, api.PoolCreate{
		Name: "fast", Type: api.PoolRBD, Source: api.PoolSource{Hosts: []string{"10.0.0.1", "10.0.0.2:3300"}, Name: "vms", User: "libvirt"}, Key: cephKey, Agents: nodes,
	})
}

const cephKey = "AQAAAAAAAAAAABAAYSBrZXkgb2Ygbm8gdXNlcg==" // of nobody

const otherKey = "AQAAAAAAAAAAABAAYSBrZXkgb2Ygbm8gdXNlcg=="

// has checks which nodes have the pool "fast", by its record.
func has(nodes ...string) func(ctx context.Context, w *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		p, err := store.Find[api.Pool](ctx, w.KV, w.User, "", "fast")
		if err != nil {
			return "", err
		}
		var on []string
		for _, n := range w.Nodes {
			if slices.Contains(p.Spec.Agents, n.ID) {
				on = append(on, n.Name)
			}
		}
		if !slices.Equal(on, nodes) || len(p.Status.Leaving) > 0 {
			return fmt.Sprintf("pool fast is on %v and leaves %v; it should be on %v", on, p.Status.Leaving, nodes), nil
		}
		return "", nil
	}
}

// pools returns the scenarios of changes of pools.
func pools() map[string][]Scenario {
	labels := map[string]string{"disks": "nvme"}
	change := func(u api.PoolUpdate) Accept { return on((*admit).UpdatePool, "fast", u) }
	return map[string][]Scenario{api.OpPoolUpdate: {
		{
			Name: "pool.update", Prepare: []Accept{poolOn("", false, "a1", "a2")}, Check: has("a1", "a3"),
			Accept: change(api.PoolUpdate{AddAgents: []string{"a3"}, RemoveAgents: []string{"a2"}, Labels: &labels}),
		},
		{
			Name: "pool.update, several nodes", Prepare: []Accept{poolOn("", false, "a1")}, Check: has("a1", "a2", "a3"),
			Accept: change(api.PoolUpdate{AddAgents: []string{"a1", "a2", "a3"}}),
		},
		{
			Name: "pool.update, shared", Prepare: []Accept{poolOn(netDir, true, "a1", "a2")}, Check: has("a2", "a3"),
			Accept: change(api.PoolUpdate{AddAgents: []string{"a3"}, RemoveAgents: []string{"a1"}}),
			// It sees the directory from the moment it is asked, whether it has the pool or not.
			Ignore: func(line string) bool { return strings.HasPrefix(line, "a3: pool ") },
		},
		{
			Name: "pool.update, NFS", Prepare: []Accept{mountedPool(api.PoolNFS, "/srv/vms", "a1", "a2")}, Check: has("a2", "a3"),
			Accept: change(api.PoolUpdate{AddAgents: []string{"a3"}, RemoveAgents: []string{"a1"}}),
			Ignore: func(line string) bool { return strings.HasPrefix(line, "a3: pool ") },
		},
		{
			Name: "pool.update, another way to Ceph", Prepare: []Accept{cephOn("a1", "a2")}, Every: 2,
			Accept: change(api.PoolUpdate{Monitors: []string{"10.0.0.7"}, User: "libvirt2", Key: otherKey}),
			Check: func(ctx context.Context, w *World) (string, error) {
				p, err := store.Find[api.Pool](ctx, w.KV, w.User, "", "fast")
				if err != nil || p.Spec.Source.KeyVersion == 1 && p.Spec.Source.User == "libvirt2" && slices.Equal(p.Spec.Source.Hosts, []string{"10.0.0.7"}) {
					return "", err
				}
				return fmt.Sprintf("pool fast is reached by %+v", p.Spec.Source), nil
			},
		},
		{
			Name: "pool.update, without a dead node", Prepare: []Accept{poolOn("", false, "a1", "a2", "a3")}, Plant: died("a2"), Check: has("a1"),
			Accept: change(api.PoolUpdate{RemoveAgents: []string{"a2", "a3"}}),
		},
	}}
}
