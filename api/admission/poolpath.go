package admission

import (
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// apart checks that a directory pool does not come to lie inside another pool of files on a node, nor around one: whoever took
// one of them away would have the files of the other in hand. Two that come at once touch the same ledger, so that the second is
// decided with the first in sight.
func (a *Admission) apart(c *acceptance, pool *api.Pool, agents []*api.Agent) error {
	if pool.Spec.Type != api.PoolDir {
		return nil // has a directory of its own, or none
	}
	claims, err := store.Ledger(c.ctx, c.kv, store.PoolPaths)
	if err != nil {
		return err
	}
	c.Touch(store.PoolPaths, claims.Revision)
	names := map[string]string{}
	for _, ag := range agents {
		names[ag.ID] = ag.Name
	}
	for _, e := range claims.Claims {
		agent, path := store.PoolPathOf(e.Key)
		inside, around := under(pool.Spec.Path, path), under(path, pool.Spec.Path)
		if names[agent] == "" || string(e.Value) == pool.ID || !inside && !around {
			continue
		}
		other, err := store.Get[api.Pool](c.ctx, c.kv, c.h, "", string(e.Value))
		if problem.Is(err, problem.NotFound) {
			continue // a claim that nobody has is an audit's
		}
		if err != nil {
			return err
		}
		if !other.Spec.Files() {
			continue // what names a Ceph pool only looks like a path
		}
		no := problem.New(problem.Conflict, "directory %s cannot be pool %s on agent %s", pool.Spec.Path, pool.Name, names[agent])
		if inside {
			no = no.Because("it is inside %s, which is pool %s", path, other.Name)
		} else {
			no = no.Because("%s is inside it, which is pool %s", path, other.Name)
		}
		return no.Try("choose a directory that is neither inside that of another pool nor around it; see: gnext pool list")
	}
	return nil
}

// under reports whether a directory is somewhere below another; both are clean.
func under(path, dir string) bool { return strings.HasPrefix(path, dir+"/") }
