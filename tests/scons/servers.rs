//! The same over real HTTP servers.

use crate::scons::machines::{
    a_256_mib_product_arrives_whole, two_machines_building_at_once_agree,
};
use crate::scons::versions::every_version_retrieves_what_every_other_pushed;
use crate::support::servers::{Nginx, Server};
use crate::support::shared::Shared;

macro_rules! over {
    ($server:ident, $start:expr) => {
        mod $server {
            use super::*;

            #[test]
            fn every_version_retrieves_what_every_other_pushed() {
                let server = $start;
                super::every_version_retrieves_what_every_other_pushed(|name| {
                    Shared::remote(format!("{}/{name}", server.url()))
                });
            }

            #[test]
            fn a_256_mib_product_arrives_whole() {
                let server = $start;
                super::a_256_mib_product_arrives_whole(&Shared::remote(server.url()));
            }

            #[test]
            fn two_machines_building_at_once_agree() {
                let server = $start;
                super::two_machines_building_at_once_agree(&Shared::remote(server.url()));
            }
        }
    };
}

over!(nginx, Server::nginx(Nginx::Open));
over!(lighttpd, Server::lighttpd());
