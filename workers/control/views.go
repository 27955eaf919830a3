package control

import (
	"context"
	"fmt"

	"github.com/nextstack/nextstack/activities/network"
	"github.com/nextstack/nextstack/activities/state"
	"github.com/nextstack/nextstack/activities/storage/images"
)

// NetworkRows lets audits see what a network driver has.
func NetworkRows(d network.Driver) state.NetworkView { return networkRows{d} }

type networkRows struct{ d network.Driver }

func (n networkRows) Rows(ctx context.Context) ([]state.Row, error) {
	inv, err := n.d.List(ctx)
	if err != nil {
		return nil, err
	}
	var out []state.Row
	for _, item := range inv.Items {
		out = append(out, state.Row{Kind: item.Kind, ID: item.ID, What: fmt.Sprintf("the network part of %s %s", item.Kind, item.ID), Defects: item.Defects})
	}
	return out, nil
}

// StoredImages lets audits see, and remove, the image files that the server has.
func StoredImages(s *images.Store) state.ImageView { return storedImages{s} }

type storedImages struct{ *images.Store }

func (i storedImages) Stored(context.Context) ([]string, error) { return i.List() }
