package network

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"

	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// IntegrationBridge is the bridge that OVN runs on each node, which VMs are plugged into.
const IntegrationBridge = "br-int"

// LocalInfo is what the Open vSwitch of a node says of itself.
type LocalInfo struct {
	ChassisID         string `json:"chassisID"` // external_ids:system-id, the node's name in OVN; empty if it has none
	Version           string `json:"version"`
	UserspaceDatapath bool   `json:"userspaceDatapath"` // the integration bridge runs in user space: guests must not offload
}

type ovsRoot struct {
	UUID        string            `ovsdb:"_uuid"`
	Version     *string           `ovsdb:"ovs_version"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

type ovsBridge struct {
	UUID         string   `ovsdb:"_uuid"`
	Name         string   `ovsdb:"name"`
	DatapathType string   `ovsdb:"datapath_type"`
	Ports        []string `ovsdb:"ports"`
}

type ovsPort struct {
	UUID       string   `ovsdb:"_uuid"`
	Name       string   `ovsdb:"name"`
	Interfaces []string `ovsdb:"interfaces"`
}

type ovsInterface struct {
	UUID        string            `ovsdb:"_uuid"`
	Name        string            `ovsdb:"name"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

func openVSwitch() (model.ClientDBModel, error) {
	return model.NewClientDBModel("Open_vSwitch", map[string]model.Model{
		"Open_vSwitch": &ovsRoot{}, "Bridge": &ovsBridge{}, "Port": &ovsPort{}, "Interface": &ovsInterface{},
	})
}

// local runs do on a fresh copy of the node's Open vSwitch database. A node is asked so seldom that a standing connection
// would not pay.
func local(ctx context.Context, endpoint string, do func(*session) error) error {
	l := newLink(endpoint, "Open_vSwitch", openVSwitch, slog.New(slog.DiscardHandler))
	defer l.close()
	s, err := l.session(ctx)
	if err != nil {
		return err
	}
	err = do(s)
	if errors.Is(err, errLost) {
		return l.unavailable(ctx, err)
	}
	return err
}

func rowsOf[T any](s *session, table string) []*T {
	var out []*T
	for _, m := range s.tables.Table(table).RowsShallow() {
		out = append(out, m.(*T))
	}
	return out
}

func integrationBridge(s *session) *ovsBridge {
	for _, b := range rowsOf[ovsBridge](s, "Bridge") {
		if b.Name == IntegrationBridge {
			return b
		}
	}
	return nil
}

// ListPorts returns the interfaces on the integration bridge that are bound to a logical port, by name. A node without that
// bridge has none.
func ListPorts(ctx context.Context, endpoint string) ([]steps.PortFound, error) {
	out := []steps.PortFound{}
	err := local(ctx, endpoint, func(s *session) error {
		b := integrationBridge(s)
		if b == nil {
			return nil
		}
		for _, p := range rowsOf[ovsPort](s, "Port") {
			if !slices.Contains(b.Ports, p.UUID) {
				continue
			}
			for _, i := range rowsOf[ovsInterface](s, "Interface") {
				if id := i.ExternalIDs["iface-id"]; id != "" && slices.Contains(p.Interfaces, i.UUID) {
					out = append(out, steps.PortFound{Name: i.Name, Port: id})
				}
			}
		}
		return nil
	})
	slices.SortFunc(out, func(a, b steps.PortFound) int { return cmp.Compare(a.Name, b.Name) })
	return out, err
}

// RemovePort takes the port of this name off the integration bridge; it is content if there is none. A port of another
// bridge stays and gives a conflict: whoever made it did not make it for a VM.
func RemovePort(ctx context.Context, endpoint, name string) error {
	if name == "" || strings.ContainsAny(name, "\x00/ ") {
		return problem.New(problem.Invalid, "%q is no interface name", name)
	}
	return local(ctx, endpoint, func(s *session) error {
		var port *ovsPort
		for _, p := range rowsOf[ovsPort](s, "Port") {
			if p.Name == name {
				port = p
			}
		}
		if port == nil {
			return nil
		}
		b := integrationBridge(s)
		if b == nil || !slices.Contains(b.Ports, port.UUID) {
			return problem.New(problem.Conflict, "port %s is not removed", name).Because("it is not on bridge %s", IntegrationBridge)
		}
		if port.Name == IntegrationBridge {
			return problem.New(problem.Invalid, "port %s is the bridge itself", name)
		}
		return s.commit(ctx, []ovsdb.Operation{{ // the port and its interface go when no bridge holds them
			Op: ovsdb.OperationMutate, Table: "Bridge", Where: []ovsdb.Condition{is(b.UUID)},
			Mutations: []ovsdb.Mutation{*ovsdb.NewMutation("ports", ovsdb.MutateOperationDelete, toSet(port.UUID))},
		}})
	})
}

// Local tells what the node's Open vSwitch is. Unsupported: it has no integration bridge, so no VM can be plugged in.
func Local(ctx context.Context, endpoint string) (LocalInfo, error) {
	var info LocalInfo
	err := local(ctx, endpoint, func(s *session) error {
		for _, r := range rowsOf[ovsRoot](s, "Open_vSwitch") {
			info.ChassisID = r.ExternalIDs["system-id"]
			if r.Version != nil {
				info.Version = *r.Version
			}
		}
		b := integrationBridge(s)
		if b == nil {
			return problem.New(problem.Unsupported, "Open vSwitch at %s has no bridge %s", endpoint, IntegrationBridge).
				Try("start ovn-controller on the node, or make the bridge")
		}
		info.UserspaceDatapath = b.DatapathType == "netdev"
		return nil
	})
	return info, err
}
