package fault

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
)

// Dump is everything that there is, one line each, in order.
type Dump []string

// Dump describes the world. Operations and ledgers are left out, and so are times and revisions: they only grow. Copies of
// images in pools are left out, too: they are a cache.
func (w *World) Dump(ctx context.Context) (Dump, error) {
	var out Dump
	entries, _, err := w.KV.List(ctx, store.Root)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		switch key := strings.TrimPrefix(e.Key, store.Root); {
		case strings.HasPrefix(key, "ledger/"), strings.HasPrefix(key, string(api.KindOperation)+"/"):
		case strings.HasPrefix(key, "claims/"), strings.HasPrefix(key, "secrets/"), strings.HasPrefix(key, "beats/"):
			out = append(out, fmt.Sprintf("%s = %s", key, e.Value))
		default:
			line, err := record(e.Value)
			if err != nil {
				return nil, err
			}
			out = append(out, key+" = "+line)
		}
	}
	inv, err := w.Network.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, item := range inv.Items {
		line, err := json.Marshal(item)
		if err != nil {
			return nil, err
		}
		out = append(out, "network: "+string(line))
	}
	for _, n := range w.Nodes {
		seen, err := n.look(ctx)
		if err != nil {
			return nil, err
		}
		for _, d := range seen.Domains {
			if n.dead {
				continue // whether they still run is asked elsewhere
			}
			out = append(out, fmt.Sprintf("%s: domain %s is %s, ha %v", n.Name, d.ID, d.Phase, n.Compute.HA(d.ID)))
			if memory := n.Compute.Memory(d.ID); memory != "" {
				out = append(out, fmt.Sprintf("%s: domain %s remembers %q", n.Name, d.ID, memory))
			}
			for _, k := range n.Compute.Disks(d.ID) {
				out = append(out, fmt.Sprintf("%s: domain %s has %+v", n.Name, d.ID, k))
			}
		}
		for _, f := range seen.Files {
			if f.Kind != storage.KindBacking {
				out = append(out, fmt.Sprintf("%s: %s", n.Name, f.Path))
			}
		}
		for _, p := range n.disks.pools(ctx) {
			out = append(out, fmt.Sprintf("%s: pool %s", n.Name, p.Pool))
			for _, line := range n.disks.Describe(p) {
				out = append(out, n.Name+": volume "+strings.ReplaceAll(line, unheard, "")) // see World.unheard
			}
		}
	}
	stored, err := w.images.Stored(ctx)
	for _, id := range stored {
		out = append(out, "image file "+id)
	}
	out = append(out, w.images.exported()...)
	slices.Sort(out)
	return out, err
}

// record returns the JSON of a record without what changes by itself.
func record(value []byte) (string, error) {
	var r map[string]any
	if err := json.Unmarshal(value, &r); err != nil {
		return "", err
	}
	delete(r, "created")
	delete(r, "revision")
	if status, ok := r["status"].(map[string]any); ok {
		delete(status, "observed")
		delete(status, "since")
		delete(status, "pause") // whoever finds it done does not know
		for _, when := range []string{"deleted", "expires"} {
			if status[when] != nil {
				status[when] = "then"
			}
		}
		if status["phase"] == string(api.PhaseUnknown) {
			delete(status, "reason") // whoever looked last says it in other words
		}
		if proof := status["proof"]; proof != nil { // which one it is depends on what came first
			status["proof"], status["reason"] = "there is one", ""
		}
	}
	out, err := json.Marshal(r)
	return string(out), err
}

var (
	uuidRE = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	partRE = regexp.MustCompile(`-(root|eth[0-9]+|vd[a-z])-[0-9a-f]{8}`) // the names of a VM's parts
	sumRE  = regexp.MustCompile(`\b[0-9a-f]{64}\b`)                      // of images, whose content is their ID
	macRE  = regexp.MustCompile(`([0-9a-f]{2}:){5}[0-9a-f]{2}`)
)

// Shape returns d with random IDs, names and addresses replaced by what they stand for, so that two worlds can be compared
// in which the same was done.
func (d Dump) Shape() Dump {
	names := map[string]string{}
	for _, line := range d {
		key, value, _ := strings.Cut(line, " = ")
		var m api.Meta
		if json.Unmarshal([]byte(value), &m) == nil && m.ID != "" {
			kind, _, _ := strings.Cut(key, "/")
			names[m.ID] = kind + ":" + partRE.ReplaceAllString(m.Name, "-$1")
		}
	}
	out := make(Dump, 0, len(d))
	for _, line := range d {
		line = uuidRE.ReplaceAllStringFunc(line, func(id string) string {
			if name := names[id]; name != "" {
				return "<" + name + ">"
			}
			return "<unknown>"
		})
		line = sumRE.ReplaceAllString(line, "<sha256>")
		out = append(out, macRE.ReplaceAllString(partRE.ReplaceAllString(line, "-$1"), "<mac>"))
	}
	slices.Sort(out)
	return out
}

// Diff says which lines are in one of a and b only.
func Diff(a, b Dump) []string {
	var out []string
	for _, line := range a {
		if !slices.Contains(b, line) {
			out = append(out, "- "+line)
		}
	}
	for _, line := range b {
		if !slices.Contains(a, line) {
			out = append(out, "+ "+line)
		}
	}
	if len(out) == 0 && len(a) != len(b) {
		out = append(out, fmt.Sprintf("there are %d things instead of %d", len(b), len(a)))
	}
	return out
}

// Anywhere returns d without what tells on which of the nodes a VM is.
func (d Dump) Anywhere(nodes []*Node) Dump {
	var old []string
	for _, n := range nodes {
		old = append(old, n.ID, "<node>", "<agents:"+n.Name+">", "<node>", strconv.Quote(n.Name), `"<node>"`)
	}
	any := strings.NewReplacer(old...)
	out := make(Dump, 0, len(d))
	for _, line := range d {
		on, what, _ := strings.Cut(line, ": ")
		switch {
		case slices.ContainsFunc(nodes, func(n *Node) bool { return n.Name == on }) && !strings.HasPrefix(what, "pool "):
			line = "<node>: " + what
		case !strings.HasPrefix(line, string(api.KindAgent)+"/") && !strings.HasPrefix(line, string(api.KindPool)+"/"):
			line = any.Replace(line)
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}
