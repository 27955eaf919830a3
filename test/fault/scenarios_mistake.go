package fault

import (
	"context"
	"fmt"
	"os"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// cephPath is where the pool of cephOn is.
var cephPath = api.CephPath(api.PoolSource{Hosts: []string{"10.0.0.1", "10.0.0.2:3300"}, Name: "vms"})

// mistakes returns scenarios of pools that nobody can make, for a mistake in their path, or in how they are reached. What is in the way of
// making them is in the way of everything else, too; yet the operation must end, and leave nothing.
func mistakes() map[string][]Scenario {
	refused := problem.New(problem.Invalid, "the cluster does not take the user")
	silent := problem.New(problem.Unavailable, "the monitors do not answer")
	return map[string][]Scenario{
		api.OpPoolAdd: {
			mistake("pool.add, a file", dirAt(os.DevNull, false), nil),
			mistake("pool.add, below a file", dirAt(os.DevNull+"/x/y", false, "a1", "a2"), nil),
			mistake("pool.add, below a file, shared", dirAt(os.DevNull+"/x", true, "a1", "a2"), nil),
			mistake("pool.add, no directory on one of the nodes", dirAt("/fast", false), barred("a3", "/fast", problem.New(problem.Invalid, "it is a symbolic link"))),
			mistake("pool.add, Ceph, another user", cephOn(), barred("", cephPath, refused)),
			mistake("pool.add, Ceph, another address", cephOn("a1", "a2"), barred("", cephPath, silent)),
		},
		api.OpPoolUpdate: {{
			Name: "pool.update, no directory on the new node", Prepare: []Accept{dirAt("/fast", false, "a1")}, Any: true, Check: has("a1"),
			Plant: barred("a3", "/fast", problem.New(problem.Invalid, "it is a symbolic link")), Accept: on((*admit).UpdatePool, "fast", api.PoolUpdate{AddAgents: []string{"a2", "a3"}}),
		}},
	}
}

// mistake is a pool that cannot be added; the right one, of the same name, can be afterwards.
func mistake(name string, wrong Accept, plant func(context.Context, *World) error) Scenario {
	return Scenario{Name: name, Accept: wrong, Plant: plant, Any: true, Check: func(ctx context.Context, w *World) (string, error) {
		p, err := store.Find[api.Pool](ctx, w.KV, w.User, "", "fast")
		if err == nil {
			return fmt.Sprintf("there is pool fast, which is %s", p.Status.Phase), nil
		}
		if !problem.Is(err, problem.NotFound) {
			return "", err
		}
		for _, n := range w.Nodes {
			n.disks.Bar("/fast", nil)
		}
		w.net.Bar(cephPath, nil)
		for _, right := range []Accept{dirAt("/fast", false), about((*admit).DeletePool, "fast"), cephOn()} {
			if _, err := w.Do(ctx, right); err != nil {
				return "the right command is refused: " + err.Error(), nil
			}
		}
		return "", nil
	}}
}

func dirAt(path string, shared bool, nodes ...string) Accept {
	return with((*admit).CreatePool, api.PoolCreate{Name: "fast", Type: api.PoolDir, Path: path, Shared: shared, Agents: nodes})
}

// barred lets nothing be made a pool at a path of a node, or of all of them.
func barred(node, path string, err error) func(context.Context, *World) error {
	return func(_ context.Context, w *World) error {
		for _, n := range w.Nodes {
			if node == "" || n.Name == node {
				n.disks.Bar(path, err)
			}
		}
		return nil
	}
}
