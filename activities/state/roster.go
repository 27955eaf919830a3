package state

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/placement"
)

// claim is the value of a node claim.
type claim = admission.Promise

// tally is what is promised of one node.
type tally struct {
	ledger int64 // its revision
	claims map[string]claim
	sum    api.Amount
	groups map[string]int // never changed once others may have it
}

// roster is what placement decides on, kept up to date change by change. It is not safe for concurrent use.
type roster struct {
	agents map[string]*api.Agent
	pools  map[string]*api.Pool
	tally  map[string]*tally // by agent ID, also of agents that are not known

	nodes   []placement.Node
	ledgers []int64        // of the node at the same place
	index   map[string]int // agent ID -> place; never changed once others may have it
	shown   *world         // of now; nil if something has changed
}

// world is what placement decides on at one moment. It never changes.
type world struct {
	nodes   []placement.Node
	ledgers []int64
	index   map[string]int
}

// node returns the node of an agent and the revision of its ledger; nil: there is none.
func (w *world) node(agent string) (*placement.Node, int64) {
	if i, ok := w.index[agent]; ok {
		return &w.nodes[i], w.ledgers[i]
	}
	return nil, 0
}

func newRoster() *roster {
	return &roster{agents: map[string]*api.Agent{}, pools: map[string]*api.Pool{}, tally: map[string]*tally{}, index: map[string]int{}}
}

// world returns what is known now.
func (r *roster) world() *world {
	if r.shown == nil {
		r.shown = &world{nodes: slices.Clone(r.nodes), ledgers: slices.Clone(r.ledgers), index: r.index}
	}
	return r.shown
}

func (r *roster) setAgent(a *api.Agent) {
	r.agents[a.ID] = a
	if _, known := r.index[a.ID]; !known {
		r.index = maps.Clone(r.index)
		r.index[a.ID] = len(r.nodes)
		r.nodes, r.ledgers = append(r.nodes, placement.Node{}), append(r.ledgers, 0)
	}
	r.nodes[r.index[a.ID]] = describe(a, r.pools)
	r.count(a.ID)
}

func (r *roster) dropAgent(id string) {
	i, known := r.index[id]
	if !known {
		return
	}
	delete(r.agents, id)
	last := len(r.nodes) - 1
	r.index = maps.Clone(r.index)
	r.index[r.nodes[last].ID] = i
	delete(r.index, id)
	r.nodes[i], r.ledgers[i] = r.nodes[last], r.ledgers[last]
	r.nodes, r.ledgers = r.nodes[:last], r.ledgers[:last]
	r.shown = nil
}

// setPool notes a pool; nil: it is gone. Pools change with every report of their agents, and seldom in what counts here.
func (r *roster) setPool(id string, p *api.Pool) {
	was := r.pools[id]
	if was != nil && p != nil && was.Status.Phase == p.Status.Phase && slices.Equal(was.Spec.Agents, p.Spec.Agents) && slices.Equal(was.Status.Leaving, p.Status.Leaving) {
		return
	}
	touched := map[string]bool{}
	for _, x := range []*api.Pool{was, p} {
		if x != nil {
			for _, agent := range x.Spec.Agents {
				touched[agent] = true
			}
		}
	}
	if p == nil {
		delete(r.pools, id)
	} else {
		r.pools[id] = p
	}
	for agent := range touched {
		if i, ok := r.index[agent]; ok {
			r.nodes[i].Pools, r.nodes[i].Images = poolsOf(r.agents[agent], r.pools)
			r.shown = nil
		}
	}
}

func (r *roster) tallyOf(agent string) *tally {
	t := r.tally[agent]
	if t == nil {
		t = &tally{claims: map[string]claim{}}
		r.tally[agent] = t
	}
	return t
}

func (r *roster) setLedger(agent string, revision int64) {
	r.tallyOf(agent).ledger = revision
	r.count(agent)
}

// setClaim notes what is promised to a VM; nil: nothing any more.
func (r *roster) setClaim(agent, vm string, c *claim) {
	t := r.tallyOf(agent)
	groups := maps.Clone(t.groups)
	if groups == nil {
		groups = map[string]int{}
	}
	change := func(c claim, by int) {
		t.sum.VCPUs += by * c.VCPUs
		t.sum.Memory += int64(by) * c.Memory
		for _, g := range []string{c.Group, c.Joins} {
			if g == "" {
				continue
			}
			if groups[g] += by; groups[g] == 0 {
				delete(groups, g)
			}
		}
	}
	if old, had := t.claims[vm]; had {
		change(old, -1)
		delete(t.claims, vm)
	}
	if c != nil {
		change(*c, 1)
		t.claims[vm] = *c
	}
	t.groups = groups
	r.count(agent)
}

// count writes into a node what is promised of it.
func (r *roster) count(agent string) {
	r.shown = nil
	i, known := r.index[agent]
	if !known {
		return
	}
	n := &r.nodes[i]
	r.ledgers[i], n.Claimed, n.Groups = 0, api.Amount{}, nil
	if t := r.tally[agent]; t != nil {
		r.ledgers[i], n.Claimed, n.Groups = t.ledger, t.sum, t.groups
	}
}

// ledgersRoot is the prefix of the ledgers of all nodes.
var ledgersRoot = store.LedgerKey(store.NodesRoot)

// promise takes in a change of a claim on a node, or of a node's ledger, and reports whether it was one.
func (r *roster) promise(e store.Entry, deleted bool) (bool, error) {
	if agent, ok := strings.CutPrefix(e.Key, ledgersRoot); ok {
		if deleted {
			e.Revision = 0
		}
		r.setLedger(strings.TrimSuffix(agent, "/"), e.Revision)
		return true, nil
	}
	rest, ok := strings.CutPrefix(e.Key, store.NodesRoot)
	if !ok {
		return false, nil
	}
	agent, vm, _ := strings.Cut(rest, "/")
	if deleted {
		r.setClaim(agent, vm, nil)
		return true, nil
	}
	var c claim
	if err := json.Unmarshal(e.Value, &c); err != nil {
		return true, problem.Wrap(err, problem.Internal, "the claim at %s cannot be read", e.Key)
	}
	r.setClaim(agent, vm, &c)
	return true, nil
}

// describe returns the node of an agent, without what is promised of it.
func describe(a *api.Agent, pools map[string]*api.Pool) placement.Node {
	inv, phase := &a.Status.Inventory, a.Status.Phase
	n := placement.Node{
		ID: a.ID, Name: a.Name,
		Phase: phase, Ready: phase == api.PhaseReady || phase == api.PhaseMaintenance, Reason: a.Status.Reason,
		Cordoned: a.Spec.Cordoned || phase == api.PhaseMaintenance, CordonReason: a.Spec.CordonReason,
		Arch: inv.Arch, CPUModels: inv.CPUModels, Labels: a.Labels, Network: inv.OVNChassis != "",
		Cores: inv.Cores, Memory: inv.Memory, ReservedMemory: a.Spec.ReservedMemory, CPURatio: a.Spec.CPURatio, MemoryRatio: a.Spec.MemoryRatio,
	}
	n.Pools, n.Images = poolsOf(a, pools)
	return n
}

// poolsOf returns the free bytes of the pools that a node has and has reported on without an error, and the images in them. A
// pool that is too new for a report counts as roomy: what is not known yet is found out by the step that makes the disk.
func poolsOf(a *api.Agent, pools map[string]*api.Pool) (free map[string]int64, images map[placement.Cached]bool) {
	free = map[string]int64{}
	for id, p := range pools {
		if p.Status.Phase == api.PhaseReady && p.Takes(a.ID) {
			free[id] = placement.UnknownSpace
		}
	}
	for _, u := range a.Status.Inventory.Pools {
		if _, has := free[u.Pool]; !has || u.Error != "" {
			delete(free, u.Pool)
			continue
		}
		free[u.Pool] = u.Free
		for _, sum := range u.Images {
			if images == nil {
				images = map[placement.Cached]bool{}
			}
			images[placement.Cached{Pool: u.Pool, SHA256: sum}] = true
		}
	}
	return free, images
}
