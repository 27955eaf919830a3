package placement

import (
	"fmt"
	"strings"

	"github.com/nextstack/nextstack/api"
)

// sizeDown writes bytes for people, rounded down, for what there is; sizeUp rounds up, for what is needed. So what is too
// little never reads as if it were enough: "4 GiB free, 4 GiB needed" would explain nothing.
func sizeDown(n int64) string { return size(max(n, 0), false) }

func sizeUp(n int64) string { return size(max(n, 0), true) }

func size(n int64, up bool) string {
	unit, name := int64(1), "bytes"
	switch {
	case n >= api.GiB:
		unit, name = api.GiB, "GiB"
	case n >= api.MiB:
		unit, name = api.MiB, "MiB"
	case n >= api.KiB:
		unit, name = api.KiB, "KiB"
	}
	whole, part := n/unit, n%unit*100
	if up {
		part += unit - 1
	}
	if part /= unit; part == 100 {
		whole, part = whole+1, 0
	}
	if part == 0 {
		return fmt.Sprintf("%d %s", whole, name)
	}
	return fmt.Sprintf("%s %s", strings.TrimRight(fmt.Sprintf("%d.%02d", whole, part), "0"), name)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// rest sums up the nodes that are not told of one by one: how many were refused by which filter.
func rest(total int, counts []int) string {
	var parts []string
	for i, c := range counts {
		if c > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c, filters[i].name))
		}
	}
	return fmt.Sprintf("and %s: %s", plural(total, "more node"), strings.Join(parts, ", "))
}

// percent writes a share.
func percent(share float64) string { return fmt.Sprintf("%.1f%%", share*100) }
