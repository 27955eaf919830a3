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

// later is what guests write that go on with the copy of a disk.
const later = "later "

// write reports whether the guest that has a volume writes then, which it has if so.
func (w *World) write(volume string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy {
		w.late = append(w.late, volume)
	}
	return w.busy
}

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

// unheard says what volumes do not show that their guests have written then: all of it, once, whatever became of the switch, or the copy.
func (w *World) unheard(ctx context.Context) ([]string, error) {
	w.mu.Lock()
	torn, late := slices.Clone(w.torn), slices.Clone(w.late)
	w.mu.Unlock()
	out, err := w.wrote(ctx, unheard, torn)
	if err != nil {
		return nil, err
	}
	more, err := w.wrote(ctx, later, late)
	return append(out, more...), err
}

// wrote says which volumes do not show a text as often as their guests have written it.
func (w *World) wrote(ctx context.Context, text string, volumes []string) (out []string, err error) {
	wrote := map[string]int{}
	for _, id := range volumes {
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
		if n := strings.Count(got, text); n != wrote[v.ID] {
			out = append(out, fmt.Sprintf("volume %s shows %q: its guest has written %q %d times, and not %d", v.Name, got, text, wrote[v.ID], n))
		}
	}
	return out, nil
}
