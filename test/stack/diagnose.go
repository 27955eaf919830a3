package stack

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// DescribeNetwork says how the network sees a port, for a test that failed because its guest cannot be reached: where OVN has
// bound it, which interfaces and tunnels the nodes have, and to which hardware addresses tunnels send. It ends in half a minute.
func (s *Stack) DescribeNetwork(ctx context.Context, ports ...string) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	var b strings.Builder
	ask := func(node string, argv ...string) {
		out, err := s.sandboxDo(ctx, append([]string{"exec", node}, argv...)...)
		fmt.Fprintf(&b, "--- %s: %s\n%s\n", node, strings.Join(argv, " "), out)
		if err != nil {
			fmt.Fprintf(&b, "(%v)\n", err)
		}
	}
	for _, p := range ports {
		ask(s.central, "ovn-sbctl", "--timeout=5", "--columns=chassis,additional_chassis,requested_chassis,requested_additional_chassis,options,up,tunnel_key", "find", "port_binding", "logical_port="+p)
		ask(s.central, "ovn-nbctl", "--timeout=5", "--columns=options,up,enabled", "find", "logical_switch_port", "name="+p)
	}
	ask(s.central, "ovn-sbctl", "--timeout=5", "--columns=name,hostname", "list", "chassis")
	for _, h := range s.Hosts {
		if !h.Powered() {
			fmt.Fprintf(&b, "--- %s has no power\n", h.Name)
			continue
		}
		ask(h.Name, "ovs-vsctl", "--timeout=5", "--columns=name,ofport,external_ids,options,error", "list", "interface")
		ask(h.Name, "ovs-appctl", "-T", "5", "tnl/neigh/show")
		ask(h.Name, "ovs-appctl", "-T", "5", "fdb/show", "br-ex")
		ask(h.Name, "ovs-appctl", "-T", "5", "dpctl/dump-flows")
		ask(h.Name, "sh", "-c", "ovn-appctl -t ovn-controller connection-status; tail -n 20 /var/log/ovn/ovn-controller.log")
	}
	return b.String()
}
