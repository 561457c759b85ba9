// The TURN server of pion/turn for benchmarks: UDP and TLS on one host, one long-term credential, nothing else.
//
// It is set up as the package's own examples are. It prints "ready" when it serves, and ends with SIGTERM.
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/pion/turn/v2"
)

func main() {
	udpAddress := flag.String("udp", "127.0.0.1:3478", "where it serves TURN over UDP")
	tlsAddress := flag.String("tls", "127.0.0.1:5349", "where it serves TURN over TLS")
	certificate := flag.String("certificate", "", "the chain, a PEM file")
	key := flag.String("key", "", "its private key, a PEM file")
	realm := flag.String("realm", "bench", "the realm of the credential")
	user := flag.String("user", "bench", "its user name")
	password := flag.String("password", "bench", "its password")
	flag.Parse()

	pair, err := tls.LoadX509KeyPair(*certificate, *key)
	if err != nil {
		log.Fatal(err)
	}
	udp, err := net.ListenPacket("udp4", *udpAddress)
	if err != nil {
		log.Fatal(err)
	}
	streams, err := tls.Listen("tcp4", *tlsAddress, &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		log.Fatal(err)
	}
	host := udp.LocalAddr().(*net.UDPAddr).IP
	relayed := &turn.RelayAddressGeneratorStatic{RelayAddress: host, Address: host.String()}
	credential := turn.GenerateAuthKey(*user, *realm, *password)
	server, err := turn.NewServer(turn.ServerConfig{
		Realm: *realm,
		AuthHandler: func(name string, _ string, _ net.Addr) ([]byte, bool) {
			return credential, name == *user
		},
		PacketConnConfigs: []turn.PacketConnConfig{{PacketConn: udp, RelayAddressGenerator: relayed}},
		ListenerConfigs:   []turn.ListenerConfig{{Listener: streams, RelayAddressGenerator: relayed}},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("ready")

	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, syscall.SIGTERM, syscall.SIGINT)
	<-stopped
	if err := server.Close(); err != nil {
		log.Fatal(err)
	}
}
