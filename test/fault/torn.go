package fault

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
)

// unheard is what guests write that have gone over to another layer, while whoever manages them believes that they have not.
const unheard = "unheard "

// tear reports whether libvirtd dies in a switch of the disk of a volume, or when it gives it to a guest.
func (w *World) tear(volume string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tears == 0 {
		return false
	}
	w.tears--
	w.torn = append(w.torn, volume)
	return true
}

// unheard says what volumes do not show that their guests have written then: all of it, once, whatever became of the switch.
func (w *World) unheard(ctx context.Context) (out []string, err error) {
	w.mu.Lock()
	torn := slices.Clone(w.torn)
	w.mu.Unlock()
	wrote := map[string]int{}
	for _, id := range torn {
		wrote[id]++
	}
	all, err := store.List[api.Volume](ctx, w.KV, w.User, "*")
	if err != nil {
		return nil, err
	}
	for _, v := range all {
		if wrote[v.ID] == 0 {
			continue
		}
		node, plan, err := w.find(ctx, v)
		if err != nil {
			return nil, err
		}
		got, _, err := node.disks.Shows(plan)
		if err != nil {
			return nil, err
		}
		if n := strings.Count(got, unheard); n != wrote[v.ID] {
			out = append(out, fmt.Sprintf("volume %s shows %q: its guest has written %q %d times, and not %d", v.Name, got, unheard, wrote[v.ID], n))
		}
	}
	return out, nil
}
