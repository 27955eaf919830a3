package pings

import (
	"bufio"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	const answers = `PING 10.1.0.3 (10.1.0.3) 56(84) bytes of data.
[100.000000] 64 bytes from 10.1.0.3: icmp_seq=1 ttl=64 time=1.2 ms
[100.020000] 64 bytes from 10.1.0.3: icmp_seq=2 ttl=64 time=1.2 ms
[100.320000] 64 bytes from 10.1.0.3: icmp_seq=17 ttl=64 time=1.2 ms
`
	const summary = `
--- 10.1.0.3 ping statistics ---
20 packets transmitted, 3 received, 85% packet loss, time 400ms
`
	read := func(text string, stopped float64) (Pinged, error) {
		return parse(bufio.NewScanner(strings.NewReader(text)), stopped)
	}
	got, err := read(answers+summary, 100.4)
	require.NoError(t, err)
	require.Equal(t, 20, got.Sent)
	require.Equal(t, 3, got.Answered)
	require.InDelta(t, 300*time.Millisecond, got.Gap, float64(time.Millisecond))
	got, err = read(answers+summary, 102.32) // silent in the end
	require.NoError(t, err)
	require.InDelta(t, 2*time.Second, got.Gap, float64(time.Millisecond))
	_, err = read(answers, 100.4)
	require.Error(t, err, "it was killed, and told nothing")
}
